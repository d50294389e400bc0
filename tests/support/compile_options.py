"""How the tests' programs are compiled: most run once, and compiling them is what takes time."""

import importlib.metadata

_QUICK = {"xla_backend_optimization_level": "0"}
OPTIMISED = {"xla_backend_optimization_level": 3}  # as users compile
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no such option
    _QUICK["xla_cpu_use_fusion_emitters"] = "false"
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True

FLAGS = " ".join(f"--{name}={value}" for name, value in _QUICK.items())
