"""Kinds of objects that people make. Each function draws one, with the small differences that its kind allows."""

from __future__ import annotations

import numpy as np

from labelmill.operators.miniatures.shapes import (
    ALT,
    BEAK,
    CREAM,
    EMPTY,
    GLASS,
    INK,
    MAIN,
    WOOD,
    Drawing,
    Sheet,
    ellipse,
    smooth,
)


def car(sheet: Sheet) -> None:
    windows: list[list[tuple[float, float]]]
    if sheet.chance(0.6):
        roof, back = sheet.vary(26, 32), sheet.vary(26, 34)
        sheet.fill(MAIN, [(back - 13, 50), (back, roof), (64, roof), (80, 50)])
        windows = [
            [(back - 5, 49), (back + 4, roof + 5), (46, roof + 5), (46, 49)],
            [(51, 49), (51, roof + 5), (62, roof + 5), (73, 49)],
        ]
    else:
        roof = sheet.vary(24, 30)
        sheet.fill(MAIN, [(5, 52), (7, roof), (58, roof), (76, 50)])
        windows = [
            [(13, 49), (14, roof + 5), (33, roof + 5), (33, 49)],
            [(38, 49), (38, roof + 5), (56, roof + 5), (68, 49)],
        ]
    sheet.fill(MAIN, smooth([(2, 60), (4, 50), (20, 47), (78, 47), (95, 53), (98, 62), (96, 70), (50, 71), (4, 70)]))
    for window in windows:
        sheet.fill(GLASS, window)
    sheet.box(ALT, 5, 58, 95, 61)
    sheet.disc(CREAM, 95, 57, 3)
    for x in (24, 76):
        sheet.disc(INK, x, 70, 11)
        sheet.disc(CREAM, x, 70, 5)


def bus(sheet: Sheet) -> None:
    top = 24.0
    if sheet.chance(0.35):
        top = 8.0
        rows: list[tuple[float, float]] = [(14, 28), (38, 54)]
    else:
        rows = [(31, 49)]
    sheet.box(MAIN, 2, top, 98, 78, 5)
    count = 5
    step = 88 / count
    for y1, y2 in rows:
        for i in range(count):
            sheet.box(GLASS, 7 + i * step, y1, 3.5 + (i + 1) * step, y2, 1.5)
    sheet.box(ALT, 2, 60, 98, 65)
    sheet.disc(BEAK, 95.5, 70, 2.5)
    for x in (22, 76):
        sheet.disc(INK, x, 78, 10)
        sheet.disc(CREAM, x, 78, 4)


def boat(sheet: Sheet) -> None:
    sheet.line(WOOD, [(48, 70), (48, 5)], 4)
    tip = sheet.vary(6, 14)
    full = smooth([(52, tip), (68, 26), (84, 58), (52, 60)], 4)
    sheet.fill(MAIN, full if sheet.chance() else np.array([(52, tip), (86, 60), (52, 60)]))
    if sheet.chance(0.7):
        sheet.fill(ALT, [(44, tip + 8), (44, 60), (16, 60)])
    sheet.fill(MAIN, [(3, 67), (97, 67), (90, 80), (80, 90), (20, 90), (10, 80)])
    sheet.fill(CREAM, [(5, 71), (95.5, 71), (94, 74.5), (6.5, 74.5)])


def airplane(sheet: Sheet) -> None:
    sweep = sheet.vary(14, 26)
    wing = [(62, 47), (56 - sweep, 4), (46 - sweep, 4), (38, 47)]
    tail = [(16, 47), (6, 28), (0, 28), (4, 47)]
    for part in (wing, tail):
        sheet.fill(MAIN, part)
        sheet.fill(MAIN, [(x, 100 - y) for x, y in part])
    if sheet.chance(0.6):
        for y in (28, 72):
            sheet.box(ALT, 44 - sweep / 3, y - 3.5, 62 - sweep / 3, y + 3.5, 3)
    sheet.fill(
        MAIN, smooth([(1, 50), (8, 45), (40, 42), (80, 42), (94, 45), (99, 50), (94, 55), (80, 58), (40, 58), (8, 55)])
    )
    sheet.fill(GLASS, [(84, 44.5), (90, 45.5), (93, 50), (90, 54.5), (84, 55.5), (86, 50)])
    for x in range(26, 80, 9):
        sheet.disc(GLASS, x, 50, 2.3)


def bicycle(sheet: Sheet) -> None:
    radius, width = 19.0, sheet.vary(5.5, 7.5)
    back, front, pedal = (22.0, 66.0), (78.0, 66.0), (46.0, 66.0)
    solid = sheet.chance(0.4)
    for x, y in (back, front):
        if solid:
            sheet.disc(ALT, x, y, radius)
        sheet.line(MAIN, ellipse(x, y, radius, radius), width, closed=True)
        if not solid:
            for turn in (20, 80, 140):
                sheet.line(ALT, ellipse(x, y, radius, radius, turn, turn + 180, n=2), 2)
    seat, bars = (38.0, 36.0), (68.0, 34.0)
    for line in ([back, pedal, bars, (70.0, 40.0), front], [back, (40.0, 42.0), (69.0, 40.0)], [seat, pedal]):
        sheet.line(MAIN, line, width)
    sheet.line(INK, [(30, 34), (46, 34)], 6)
    sheet.line(INK, [(66, 28), (68, 34)], 5)
    sheet.line(INK, [(62, 27), (76, 27)], 5)
    sheet.disc(INK, *pedal, 5)


def house(sheet: Sheet) -> None:
    peak = sheet.vary(6, 16)
    if sheet.chance(0.7):
        sheet.box(ALT, 70, peak + 6, 80, 44)
    sheet.box(MAIN, 13, 42, 87, 94)
    sheet.fill(ALT, [(3, 48), (50, peak), (97, 48)])
    door = sheet.vary(40, 50)
    sheet.box(WOOD, door, 66, door + 14, 94)
    sheet.disc(BEAK, door + 11, 81, 1.6)
    for x in (20, 66):
        sheet.box(GLASS, x, 56, x + 15, 72)
        sheet.line(CREAM, [(x + 7.5, 56), (x + 7.5, 72)], 1.8)
        sheet.line(CREAM, [(x, 64), (x + 15, 64)], 1.8)
    if sheet.chance():
        sheet.disc(GLASS, 50, 33, 6)


def cup(sheet: Sheet) -> None:
    foot = sheet.vary(16, 26)
    sheet.line(MAIN, ellipse(72, 46, 19, 19, -85, 100), 8.5)
    sheet.fill(
        MAIN,
        np.concatenate([np.array([(8, 18), (78, 18)], np.float64), ellipse(43, 86, 35 - foot / 2, 6, 0, 180, n=10)]),
    )
    sheet.disc(ALT, 43, 18, 35, 7)
    sheet.disc(WOOD, 43, 19.5, 30, 4.5)
    if sheet.chance(0.4):
        sheet.box(ALT, 14, 40, 72, 48)


def bottle(sheet: Sheet) -> None:
    shoulder, wide = sheet.vary(36, 46), sheet.vary(17, 21)
    left = [(50 - 7, 12), (50 - 7, shoulder - 12), (50 - wide, shoulder + 4), (50 - wide, 94), (50 - wide + 4, 98)]
    sheet.fill(MAIN, left + [(100 - x, y) for x, y in reversed(left)])
    sheet.box(INK, 41.5, 2, 58.5, 13, 2)
    if sheet.chance(0.75):
        sheet.box(CREAM, 50 - wide, 58, 50 + wide, 80)
        sheet.disc(ALT, 50, 69, 7)
    else:
        sheet.box(ALT, 50 - wide, 86, 50 + wide, 91)


def chair(sheet: Sheet) -> None:
    seat = sheet.vary(52, 58)
    legs = seat + 5
    sheet.fill(ALT, [(34, legs), (41, legs), (41, 84), (34, 84)])
    sheet.fill(ALT, [(72, legs), (79, legs), (79, 84), (72, 84)])
    sheet.fill(MAIN, [(18, 4), (27, 4), (27, 97), (18, 97)])
    sheet.fill(MAIN, [(60, legs), (69, legs), (69, 97), (60, 97)])
    if sheet.chance():
        sheet.fill(MAIN, [(20, 4), (40, 1), (40, seat - 4), (20, seat)])
    else:
        for y in (8.0, 26.0):
            sheet.fill(MAIN, [(20, y), (40, y - 3), (40, y + 7), (20, y + 10)])
        sheet.fill(MAIN, [(34, 3), (40, 2), (40, seat), (34, seat)])
    sheet.fill(MAIN, [(16, legs + 3), (16, seat), (36, seat - 8), (84, seat - 8), (72, seat), (72, legs + 3)])


def umbrella(sheet: Sheet) -> None:
    sheet.line(
        WOOD, np.concatenate([np.array([(50, 30), (50, 84)], np.float64), ellipse(41, 85, 9, 10, 0, 175, n=9)]), 5
    )
    sheet.line(INK, [(50, 3), (50, 12)], 4)
    sheet.fill(MAIN, ellipse(50, 52, 47, 44, 180, 360))
    for edge in (19, 81):
        top = 50 + (edge - 50) * 0.15
        sheet.fill(ALT, [(top, 8), (edge - 13, 52), (edge + 3 * np.sign(edge - 50), 52)])
    for x in (11, 34.5, 65.5, 89):
        sheet.fill(EMPTY, ellipse(x, 54, 9.5, 8, 180, 360, n=10))
    sheet.line(WOOD, [(50, 52), (50, 58)], 5)


def key(sheet: Sheet) -> None:
    bow = sheet.vary(18, 22)
    sheet.box(MAIN, 30, 45, 98, 56)
    for x in (74, 84, 92) if sheet.chance() else (78, 90):
        sheet.box(MAIN, x - 3.5, 54, x + 3.5, sheet.vary(66, 76))
    sheet.box(ALT, 40, 42, 45, 59)
    if sheet.chance(0.7):
        sheet.disc(MAIN, 22, 50, bow)
    else:
        sheet.box(MAIN, 22 - bow, 50 - bow, 22 + bow, 50 + bow, 9)
    sheet.disc(EMPTY, 20, 50, bow * 0.48)


MADE: dict[str, Drawing] = {
    "car": car,
    "bus": bus,
    "boat": boat,
    "airplane": airplane,
    "bicycle": bicycle,
    "house": house,
    "cup": cup,
    "bottle": bottle,
    "chair": chair,
    "umbrella": umbrella,
    "key": key,
}
