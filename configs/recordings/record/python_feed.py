"""Standard input for `python_index.py`: made-up orders to load, then questions and changes without end."""

from __future__ import annotations

import json
import sys

from made_up import MadeUp


def main() -> None:
    """Write until nobody reads."""
    nr_records, nr_asked_a_lap = int(sys.argv[1]), int(sys.argv[2])
    made_up = MadeUp(2, (10, 60))
    for number in range(nr_records):
        print("+" + json.dumps(made_up.record(number)))
    print(".", flush=True)
    asked = 0
    try:
        while True:
            number = made_up.hot_number(asked * nr_records / nr_asked_a_lap, nr_records // 24, nr_records)
            chance = made_up.chance()
            asked += 1
            if chance < 0.2:
                print("?" + made_up.words(1))
            elif chance < 0.75:
                print(f"={number} 40")
            elif chance < 0.95:
                print(f"!{number}")
            else:
                print("+" + json.dumps(made_up.record(number)))
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
