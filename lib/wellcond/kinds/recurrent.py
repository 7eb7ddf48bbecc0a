"""Recurrent layers and cells of torch: every W_ih and W_hh, the gates one below another as torch keeps them, and the
projection W_hr of an LSTM, is a matrix. The kernels of torch read W, which is formed once a call, not once a step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wellcond.kinds.opening import Opened, register_matrices


class OpenedRecurrent(Opened):
    """A layer whose kernels read a list of all weights: it is made anew at each reading."""

    _flat_weights_names: list[str]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Any) -> None:
        """torch keeps a list of its own here."""

    def after_opening(self) -> None:
        """Drop the list that torch made, which holds the matrices as they were."""
        del self.__dict__["_flat_weights"]

    def after_closing(self) -> None:
        """Have torch make its list."""
        self._init_flat_weights()

    def flatten_parameters(self) -> None:
        """Nothing: torch would move the weights into one block of memory, which what is formed does not have."""


def _matrices(module: nn.Module) -> dict[str, str]:
    return {name.removeprefix("weight_"): name for name, _ in module.named_parameters() if name.startswith("weight_")}


for layer in (nn.RNN, nn.LSTM, nn.GRU):
    register_matrices(layer, _matrices, OpenedRecurrent)
for cell in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
    register_matrices(cell, _matrices)
