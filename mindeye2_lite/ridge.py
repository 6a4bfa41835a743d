"""One linear map per person: from that person's voxels to the latent that everyone shares.

Every brain has its own number of voxels and its own places for the same content, so this is the
only part of MindEye2 that belongs to a person. Read with notebook 02. Paper's sizes on the right:

    voxels   (batch, voxels)   one row per trial          voxels   13,000 to 18,000
    latent   (batch, hidden)   the same for all people    hidden   4,096
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn


class SharedSubjectRidge(nn.Module):
    """One linear map per subject from that subject's voxels to the latent that all share.

    The optimizer's weight decay makes it a ridge regression. Nothing bends the map: it has no
    activation, no norm and no dropout. (Paper 2.1.)
    """

    def __init__(self, num_voxels: Mapping[int, int], hidden: int):
        super().__init__()
        self.subjects = tuple(sorted(num_voxels))
        self.linears = nn.ModuleList(nn.Linear(num_voxels[s], hidden) for s in self.subjects)

    def forward(
        self, voxels: Float[Tensor, "batch voxels"], subject: int
    ) -> Float[Tensor, "batch hidden"]:
        """ValueError in one line for a subject without a map or a wrong number of voxels."""
        linear = self.linear(subject)
        if voxels.shape[1] != linear.in_features:
            raise ValueError(
                f"subject {subject}'s ridge map takes {linear.in_features} voxels, got "
                f"{voxels.shape[1]}: check the subject, and that both use the same nsdgeneral mask"
            )
        return linear(voxels)

    def linear(self, subject: int) -> nn.Linear:
        """That subject's map."""
        if subject not in self.subjects:
            pairs = zip(self.subjects, self.linears, strict=True)
            known = ", ".join(f"{s} ({linear.in_features} voxels)" for s, linear in pairs)
            known = known or "nobody (fine-tune it first)"
            raise ValueError(f"no ridge map for subject {subject}: this model knows {known}")
        return self.linears[self.subjects.index(subject)]
