"""How long chapters take at the profile quick, from the executed book: profiles/times.json. `make times` runs it."""

from pathlib import Path

from robattr.pages.timing import PROFILE, note_times

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    print(note_times(ROOT / "_build" / "executed" / PROFILE, ROOT).relative_to(ROOT))
