"""A Python program worth recording: keeps orders in dicts with an index of words, and answers questions about them.

Runs with the plain interpreter and its standard library. Each line of standard input is an order to load or
replace (`+{...}`), a word to look up (`?word`), an order to change (`!number`), or a range of orders to add up
and mark as seen (`=first count`); `.` says that loading is over.
"""

import json
import sys

orders = {}
index = {}
totals = {}


def load(line: str) -> None:
    order = json.loads(line)
    number = order["id"]
    orders[number] = order
    for item in order["items"]:
        totals[item["sku"]] = totals.get(item["sku"], 0) + item["count"]
    for word in order["note"].split():
        found = index.get(word)
        if found is None:
            index[word] = [number]
        elif found[-1] != number:
            found.append(number)


def look_up(word: str) -> float:
    total = 0.0
    for number in index.get(word, ())[-40:]:
        total += orders[number]["total"]
    return total


def change(number: int) -> None:
    order = orders[number]
    order["total"] = round(order["total"] * 1.01, 2)
    order["history"] = [*order.get("history", [])[-3:], order["state"] + " at " + str(order["total"])]


def add_up(first: int, count: int) -> float:
    total = 0.0
    for number in range(first, first + count):
        order = orders[number % len(orders)]
        total += order["total"] * len(order["items"])
        order["seen"] = order.get("seen", 0) + 1
    return total


for line in sys.stdin:
    kind = line[0]
    if kind == "+":
        load(line[1:])
    elif kind == "?":
        look_up(line[1:-1])
    elif kind == "!":
        change(int(line[1:]))
    elif kind == "=":
        add_up(*map(int, line[1:].split()))
    else:
        open("start", "w").close()
