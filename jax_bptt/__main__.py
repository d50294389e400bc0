"""Is the library right on this machine? `python -m jax_bptt` prints its version and checks a gradient."""

import platform

import jax

import jax_bptt as jb


def main() -> None:
    """Print what runs here, and whether the gradient of an LSTM agrees with three witnesses."""
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    print(
        f"jax_bptt {jb.__version__}, JAX {jax.__version__}, Python {platform.python_version()} on {devices}"
    )
    cell = jb.lstm(3, 4)
    print(f"{cell}: {str(jb.check_gradient(cell)).splitlines()[-1]}")


if __name__ == "__main__":
    main()
