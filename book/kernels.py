"""Kernels that start in a tenth of a second: forked from one process that has loaded what every chapter loads.

A kernel of Jupyter's own spends some five seconds of processor time on importing torch, pandas and SciPy, and two more
where a chapter makes an optimizer, which loads torch's compiler: more than most chapters compute.  A forked one is as
fresh: nothing of a chapter has run in it.

    papermill.execute_notebook(..., kernel_manager_class=ForkedKernelManager)
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

LOADED = ["__main__", "ipykernel.kernelapp", "seaborn", "study", "torch._dynamo"]
INLINE = "module://matplotlib_inline.backend_inline"  # the backend that puts figures into the notebook
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(LOADED)


def _kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.setsid()  # its own process group, which is ended with it
    os.chdir(folder)
    os.environ.clear()
    # ipykernel ends a kernel whose parent has gone; its parent is the process that forked it
    os.environ.update(environment, JPY_PARENT_PID=str(os.getppid()))
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    matplotlib.rcParams["backend"] = INLINE  # what it reads of the environment, where it is imported by a kernel
    launch_new_instance(argv=arguments)


class _Process:
    """A forked kernel as LocalProvisioner handles it: what it calls of subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: str) -> None:
        self._process = _SERVER.Process(target=_kernel, args=(arguments, environment, folder))
        self._process.start()
        self.pid = self._process.pid or 0
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _Forked(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.cwd = str(kwargs.get("cwd") or Path.cwd())
        process: Any = _Process(arguments, kwargs["env"], self.cwd)
        self.process, self.pid, self.pgid = process, process.pid, process.pid
        return self.connection_info


class ForkedKernelManager(AsyncKernelManager):
    """Starts its kernel by a fork."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.provisioner = _Forked(kernel_id="", kernel_spec=self.kernel_spec, parent=self)
