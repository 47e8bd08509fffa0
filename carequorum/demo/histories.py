"""Where the demo's patients come from: synthetic FHIR R4 histories, made on the spot from a seed."""

import itertools
from pathlib import Path

import carebundle

PATIENTS = 16
VISITS = 24


def write_histories(folder: Path, seed: int) -> None:
    """Write one transaction Bundle for each of PATIENTS patients, over 600 resources in all.

    The same seed gives the same bytes. Half of the patients have a long course of visits, half one visit with
    its full laboratory panels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profiles = itertools.cycle(sorted(carebundle.PROFILES))
    for number, profile in zip(range(PATIENTS), profiles, strict=False):
        sex = "FM"[number // 2 % 2]
        if number % 2:
            bundle = carebundle.generate_bundle(profile=profile, seed=seed, index=number, sex=sex)
        else:
            bundle = carebundle.generate_history(profile=profile, seed=seed, index=number, sex=sex, visits=VISITS)
        (folder / f"patient-{number:02}.json").write_text(carebundle.to_json(bundle), encoding="utf-8")
