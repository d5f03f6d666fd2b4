"""Odd values and broken words for command lines: what people, scripts and accidents put after an equals sign."""

import random
import string

NUMBERS = [
    "0", "-0.0", "1", "-1", "2", "3.7", "1.5", "-0.5", "0.99999999999", "1e-400", "1e3", "1.0e3", "1E-3", "1_000",
    "0x10",
    "0o7", "007", "+5", "1.", ".5", "nan", "NaN", ".nan", "-nan", "inf", "-inf", ".inf", "Infinity", "true", "false",
    "True", "yes", "on", "null", "None", "~",
]  # fmt: skip
HUGE = ["1e400", "-1e400", "1e12", "1000000", "1000000000", "9223372036854775808", "-9223372036854775809",
        "1" + 40 * "0",
        "9" * 5000, "0." + "0" * 400 + "1"]  # fmt: skip
TEXTS = [
    "", "''", '""', "' '", "text", "'a b'", "a b", "ü", "日本語", "🙂", "'\\''", "\\", "\\\\", "\t", "'\n'", "a\nb",
    "%s", "{0}",
    "<script>", "$(id)", ";", "|", "&", "#", "a#b", "# x", "@", "@x", "a=b", "a==b", "=", ":", "a:b", "a: b", "- a",
    "!x", "!!x y",
    "*x", "&x", "?", "???", "-", "--", "---", "...", ",", ",,", "1,2", "a,b", "'1,2'", "x" * 300, "x" * 100_000,
    "\u202etxt",
    "\x1b[31m", "a.b.c", ".a", "a.", "None.None", "cpu", "cuda:99", "cuda:-1", "meta", "auto",
]  # fmt: skip
PATHS = ["/etc/passwd", "../../x", ".", "..", "/", "/dev/null", "/proc/self/mem", "nowhere/at/all", "a b/c", "./'x'",
         "~/x",
         "file:///etc/passwd", "https://example.org/x", "x" * 256, "x/" * 100]  # fmt: skip
LISTS = ["[]", "[[]]", "[1]", "[1,2,3]", "[-1]", "[0]", "[null]", "[nan]", "[1.5]", "[a,b]", "['']", "[[1,2],[3]]",
         "[{}]",
         "[true]", "[1,a]", "[1000000000]", "[" + "1," * 500 + "1]", "[" * 60 + "]" * 60]  # fmt: skip
MAPPINGS = ["{}", "{a:1}", "{a:{b:{c:1}}}", "{'':1}", "{1:2}", "{a:null}", "{_target_:nothing}",
            "{_target_:marl.networks.MLP}",
            "{_target_:builtins.print}", "{_target_:1}", "{_target_:null}", "{_target_:[]}", "{_partial_:maybe}",
            "{_args_:1}", "{lr:nan}", "{a:${seed}}", "{" * 60 + "}" * 60]  # fmt: skip
INTERPOLATIONS = ["${seed}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${", "${seed", "$", "${}",
                  "${.}", "${..}",
                  "${.seed}", "${oc.decode:'{'}", "${oc.select:x}", "${oc.nothing:x}", "${hydra:runtime.cwd}",
                  "${task}",
                  "${algo.gamma}", "${env}", "${seed}${seed}", "'${seed}'", "${oc.dict.keys:env}",
                  "${${seed}}"]  # fmt: skip
SWEEPS = ["choice(1,2)", "choice()", "range(3)", "range(0,1,0)", "range(1,1e9)", "glob(*)", "interval(0,1)",
          "sort(2,1)",
          "shuffle(1,2)", "int(abc)", "int(1.5)", "float(x)", "str(1)", "bool(2)", "json_str(x)", "tag(a,1)",
          "extend_list(1)",
          "nothing(1)"]  # fmt: skip
BROKEN = [
    "[",
    "]",
    "{",
    "}",
    "[1,",
    "{a:",
    "{a}",
    "(",
    ")",
    "'",
    '"',
    "'x",
    '"x',
    "[1 2]",
    "{a:1,}",
    "[,]",
    "a'b'c",
    "${[}",
]
ODD = [*NUMBERS, *HUGE, *TEXTS, *PATHS, *LISTS, *MAPPINGS, *INTERPOLATIONS, *SWEEPS, *BROKEN]
KINDS = [NUMBERS, NUMBERS, HUGE, TEXTS, TEXTS, PATHS, LISTS, MAPPINGS, INTERPOLATIONS, SWEEPS, BROKEN]


def odd(dice: random.Random, without: tuple[list[str], ...] = ()) -> str:
    """One odd value; every kind comes about equally often. `without`: kinds that would take hours or fill a disk."""
    if dice.random() < 0.05:
        return "".join(dice.choice(string.printable[:95] + "äßł ${}[]()=,:'\"\\") for _ in range(dice.randrange(1, 30)))
    return dice.choice(dice.choice([kind for kind in KINDS if kind not in without]))


def misspelt(dice: random.Random, word: str) -> str:
    """A word with a letter dropped, doubled, swapped, in capitals or put in."""
    if not word:
        return "x"
    at = dice.randrange(len(word))
    return dice.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word.upper(),
            word[:at] + dice.choice("xyz_.-/@ ü") + word[at:],
            word + dice.choice([".x", "[0]", "s", ".", "..", ".x.y.z", "@x", ":x", "/x"]),
        ]
    )
