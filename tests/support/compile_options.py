"""How the programs of the tests are compiled: most run only once, so compiling is what takes time."""

import importlib.metadata

# One module a program: splitting it for the threads of a larger machine costs a third of the time here.
_QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1"}
OPTIMISED = {"xla_backend_optimization_level": 3}  # as users compile
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no such option
    _QUICK["xla_cpu_use_fusion_emitters"] = "false"
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True

FLAGS = " ".join(f"--{name}={value}" for name, value in _QUICK.items())
