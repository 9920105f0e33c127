"""Save a checkpoint and end the run after its current step, on request by a file in the run folder.

verl's trainer has no hook for steps, only one for checkpoints: `trainer.checkpoint_callback_class`, which it builds in
its own process with its own config. Its loop reads two keys of that config in every step: save_freq after the update,
and total_epochs before the next step. So save_freq=1 saves at the end of the step, and total_epochs=0 then ends the
loop as after the last step: weights are sent, validation runs, metrics are written, loggers are closed. All of this is
public in verl.
"""

import logging
import os
import threading
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.utils.import_utils import load_class_from_fqn

from cfpo_verl.run_dir import answer_stop_request, stop_request_path

POLL_S = 0.5
# Config key under which `cfpo-verl train` stores the user's own trainer.checkpoint_callback_class.
USERS_CALLBACK = "checkpoint_callback_class"

logger = logging.getLogger(__name__)


class StopOnRequest(CheckpointCallback):
    """Watch for the file `stop_requested`; once it exists, save at the end of the step and end the run."""

    def __init__(self, config: DictConfig) -> None:
        """Build the user's own callback, if any, and start watching.

        Args:
            config: The trainer's own config with run_dir. It is modified, so it must not be a copy.
        """
        super().__init__(config)
        self._flag = stop_request_path(Path(config.run_dir))
        users = config.get(USERS_CALLBACK)
        self._users = load_class_from_fqn(users, "CheckpointCallback")(config=config) if users else None
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="stop-request", daemon=True).start()

    def _watch(self) -> None:
        configured, was_asked = self.config.trainer.save_freq, False
        while not self._ended.wait(POLL_S):
            # os.path.exists returns False where Path.exists raises, for example while a network folder is unreachable.
            is_asked = os.path.exists(self._flag)
            if is_asked != was_asked:
                self.config.trainer.save_freq = 1 if is_asked else configured
                logger.warning(
                    "%s %s",
                    self._flag,
                    "exists: saving after this step" if is_asked else "was removed: training continues",
                )
            was_asked = is_asked

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """Call the user's own callback; then, if the file exists, make this step the last one."""
        if self._users is not None:
            self._users.on_save(
                trainer=trainer,
                global_step=global_step,
                checkpoint_dir=checkpoint_dir,
                async_save=async_save,
                **kwargs,
            )
        if os.path.exists(self._flag) and global_step < trainer.total_training_steps:
            answer_stop_request(Path(self.config.run_dir), Path(checkpoint_dir))
            self.config.trainer.total_epochs = 0
            self._ended.set()
