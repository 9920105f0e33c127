"""Plot the value and the gradient weight of each loss over the ratio: docs/losses.png.

    python docs/draw_losses.py [OUT.png]

PPO and SAPO are verl's own functions, called through its registry. Autograd computes every slope.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import verl  # noqa: F401  loads the plugin
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from cfpo_verl.config import CfpoLossConfig, DrpoLossConfig

mpl.use("Agg")
from matplotlib import pyplot as plt

OLD_PROB = 0.1
LOSSES = {
    "PPO clipping, 0.2": PolicyLossConfig(),
    "CFPO, epsilon 0.2": CfpoLossConfig(),
    "CFPO, linear tail from 0.4": CfpoLossConfig(tail="linear"),
    "DRPO, delta 12.5, p_old 0.1": DrpoLossConfig(),
    "DRPO, delta 0.1, p_old 0.1": DrpoLossConfig(delta=0.1),
    "SAPO, tau 1 and 1.05": PolicyLossConfig(loss_mode="sapo"),
}


def curve(policy_loss: PolicyLossConfig, advantage: float, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of a token and its gradient weight w, with -d loss / d log pi = A * r * w.

    Args:
        policy_loss: A loss and its options.
        advantage: A, in reward units, not 0.
        ratios: Importance ratios r of a token whose old probability is `OLD_PROB`. Shape [B].
    """
    config = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=1, global_batch_size=1)
    old = torch.full((len(ratios), 1), OLD_PROB, dtype=torch.float64).log()
    new = (old + torch.from_numpy(ratios).unsqueeze(1).log()).requires_grad_()
    values = []
    for row in range(len(ratios)):
        loss, _metrics = get_policy_loss_fn(policy_loss.loss_mode)(
            old_log_prob=old[row : row + 1],
            log_prob=new[row : row + 1],
            advantages=torch.full((1, 1), advantage, dtype=torch.float64),
            response_mask=torch.ones(1, 1),
            loss_agg_mode="seq-mean-token-mean",
            config=config,
        )
        loss.backward()
        values.append(loss.item())
    return np.array(values), -new.grad.squeeze(1).numpy() / (advantage * ratios)


def draw(out: Path) -> None:
    """Write the figure to a PNG file."""
    ratios = np.linspace(0.02, 2, 397)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, sharey="row", layout="constrained")
    for column, advantage in enumerate([1.0, -1.0]):
        for name, policy_loss in LOSSES.items():
            style = "--" if "tail" in name or "delta 0.1" in name else "-"
            value, weight = curve(policy_loss, advantage, ratios)
            color = f"C{[key.split(',')[0] for key in LOSSES].index(name.split(',')[0])}"
            axes[0, column].plot(ratios, value, style, color=color, label=name)
            axes[1, column].plot(ratios, weight, style, color=color)
        axes[0, column].set_title(f"A = {advantage:+g}")
        axes[1, column].set_xlabel("importance ratio r")
        axes[1, column].axhline(0, color="grey", linewidth=0.8)
        for axis in axes[:, column]:
            axis.axvline(1, color="grey", linewidth=0.8)
    axes[0, 0].set_ylabel("loss of a token")
    axes[0, 0].set_ylim(-3, 4)
    axes[1, 0].set_ylabel("gradient weight w,  -d loss / d log pi = A r w")
    axes[1, 0].set_ylim(-4, 6)
    axes[0, 1].legend(loc="lower right", fontsize=9)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("losses.png")
    draw(target)
    print(target)
