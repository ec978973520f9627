"""One forward pass and one backward pass serve all methods: what they need of the model, made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xai_cli.classifiers.classifier import Classifier
from xai_cli.classifiers.layers import captured
from xai_cli.images.sources import seed_of
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.targets import Target, parse_target


@dataclass(frozen=True)
class PlainPass:
    """A forward pass with its graph, as far as the methods need one: `logits` `(B, K)`, None if there was no need of a
    pass, and the tensors that methods need; `needs` says which of them are differentiated.
    """

    classifier: Classifier
    inputs: Tensor
    logits: Tensor | None
    needs: Needs
    activations: dict[str, Tensor]

    def evidences(
        self,
        ranks: Sequence[Sequence[Target]],
        *,
        chunk: int,
        keys: Sequence[str] = (),
        sizes: Sequence[tuple[int, int]] = (),
        seed: int = 0,
    ) -> Iterator[Evidence]:
        """The evidence for each rank of targets, one target per picture: the shared backward pass. After the last rank
        the graph is gone.

        There may be fewer targets than rows: the rows beyond are padding and left out. `keys` name the pictures, which
        with `seed` gives what is random about them; `sizes` are those of the photos.
        """
        rows = len(ranks[0])
        everyone = tuple(self._goal(targets) for targets in ranks)
        evidence = Evidence(
            classifier=self.classifier,
            inputs=self.inputs[:rows].detach(),
            targets=everyone[0][0],
            contrasts=everyone[0][1],
            logits=None if self.logits is None else self.logits[:rows].detach(),
            activations={name: tensor[:rows].detach() for name, tensor in self.activations.items()},
            everyone=everyone,
            keys=tuple(keys) or ("",) * rows,
            sizes=tuple(sizes),
            seeds=tuple(seed_of(key, seed) for key in keys or [""] * rows),
            batch=len(self.inputs),
            chunk=chunk,
        )
        for rank, (targets, contrasts) in enumerate(everyone):
            ranked = replace(evidence, targets=targets, contrasts=contrasts, rank=rank, _shared={})
            yield self._differentiated(ranked, last=rank == len(everyone) - 1)

    def evidence(self, targets: Sequence[Target], *, chunk: int, keys: Sequence[str] = (), seed: int = 0) -> Evidence:
        """The evidence for one target per picture, after which the graph is gone."""
        return next(self.evidences([targets], chunk=chunk, keys=keys, seed=seed))

    def _goal(self, targets: Sequence[Target]) -> tuple[Tensor, Tensor | None]:
        device = self.inputs.device
        # All pictures of a run share one kind of target, so either all have a contrast or none.
        against = [target.against for target in targets if target.against is not None]
        chosen = torch.tensor([target.index for target in targets], device=device)
        return chosen, torch.tensor(against, device=device) if against else None

    def _differentiated(self, evidence: Evidence, *, last: bool) -> Evidence:
        """The evidence with the gradients that methods need."""
        wanted = [self.inputs] * self.needs.input_gradient + [self.activations[name] for name in self.needs.layers]
        if self.logits is None or not wanted:
            return evidence
        rows = len(evidence.inputs)
        scores = evidence.scores(self.logits[:rows])
        gradients = [each[:rows] for each in self.classifier.gradient(scores, wanted, keep_graph=not last)]
        return replace(
            evidence,
            input_gradient=gradients.pop(0) if self.needs.input_gradient else None,
            gradients=dict(zip(self.needs.layers, gradients, strict=True)),
        )


def plain_pass(classifier: Classifier, inputs: Tensor, needs: Needs) -> PlainPass:
    """Runs the classifier once on `inputs` `(B, C, h, w)`, keeping a graph only from the first tensor that needs
    one.
    """
    inputs = inputs.detach().requires_grad_(needs.input_gradient)
    grad = torch.set_grad_enabled(bool(needs.input_gradient or needs.layers))
    with grad, captured(classifier.module, needs.captured) as activations:
        logits = classifier.eager_logits(inputs) if needs.captured else classifier.logits(inputs)
    return PlainPass(classifier, inputs, logits, needs, dict(activations))


def union(classifier: Classifier, methods: Sequence[Method]) -> Needs:
    """What all `methods` together want of the plain pass.

    Raises LookupError or ValueError if one does not fit the model; of several, a ValueError that names all such.
    """
    needs, unfit = Needs(), dict[str, list[str]]()
    for method in methods:
        try:
            if method.by_gradient:
                classifier.check_differentiable()
            needs |= method.needs(classifier)
        except (LookupError, ValueError) as error:
            if len(methods) == 1 or isinstance(error, KeyError | IndexError):  # these are mistakes of ours
                raise
            unfit.setdefault(str(error), []).append(method.name)
    if unfit:
        reasons = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in unfit.items())
        raise ValueError(f"not every method fits this model, leave out what does not ({reasons})")
    return needs


def attribute(
    classifier: Classifier,
    inputs: Tensor,
    method: Method,
    target: str | Sequence[Target] = "predicted",
    *,
    chunk: int = 8,
    seed: int = 0,
) -> Attribution:
    """The maps of a batch `(B, C, h, w)` by one method, for one target per picture or for what `target` says of all.

    `target` as text is predicted, a class by index or name, or A-vs-B. Methods that sample run `chunk` samples at once,
    and draw them from `seed`, the same for every picture. Raises LookupError for an unknown class or
    layer, ValueError for a target that gives no or several classes per picture, or a method that does not fit the
    model.
    """
    rule = parse_target(target, classifier.labels) if isinstance(target, str) else None
    if rule is not None and (rule.how == "label" or rule.count > 1):
        raise ValueError(f"a tensor batch takes one target per picture, found {target!r}; give predicted or a class")
    if rule is None:
        _check_targets(target, len(inputs), len(classifier.labels))  # type: ignore[arg-type]  # it is no text
    if not len(inputs) or chunk < 1:
        raise ValueError(f"expected at least one picture and a chunk of at least 1, found {len(inputs)} and {chunk}")
    needs = union(classifier, [method])
    if rule is None:
        passed = plain_pass(classifier, inputs, needs) if needs else PlainPass(classifier, inputs, None, needs, {})
        return method.attribute(passed.evidence(target, chunk=chunk, seed=seed))  # type: ignore[arg-type]  # it is no text
    passed = plain_pass(classifier, inputs, needs)
    assert passed.logits is not None
    logits = passed.logits.detach().cpu().numpy()
    targets = [rule.choose(row, "", classifier.labels)[0] for row in logits]
    return method.attribute(passed.evidence(targets, chunk=chunk, seed=seed))


def _check_targets(targets: Sequence[Target], pictures: int, classes: int) -> None:
    if len(targets) != pictures:
        raise ValueError(f"expected one target for each of {pictures} pictures, found {len(targets)}")
    if len({target.against is None for target in targets}) > 1:
        raise ValueError("expected all targets with a class to explain against, or none; found both kinds in one batch")
    indices = [index for target in targets for index in (target.index, target.against) if index is not None]
    if not all(0 <= index < classes for index in indices):
        raise ValueError(f"expected classes from 0 to {classes - 1}, found {sorted(indices)}")
