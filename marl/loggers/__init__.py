"""Where a run's numbers go: loggers and the final summary."""

from marl.loggers.loggers import CSVLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger

__all__ = [
    "CSVLogger",
    "Logger",
    "MLflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
]
