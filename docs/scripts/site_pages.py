"""What mkdocs needs beside the pages of docs/: README as the home page, the notebook, the gallery, the examples, the
reference, and checks.

A hook of mkdocs.yml. It writes no file: the pages below exist in the site only.
"""

import html
import json
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

from marl.core.look.tokens import LIGHT

log = get_plugin_logger("site")
ROOT = Path(__file__).resolve().parents[2]
TOP = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
NOTEBOOK, GALLERY = "docs/quickstart.ipynb", "docs/zoo/gallery.html"
SHOWN = {**TOP, NOTEBOOK: "quickstart.md", GALLERY: "gallery.md"}  # {file: the page that stands for it}
EXAMPLES, LANGUAGES = "examples.md", {".py": "python", ".yaml": "yaml"}
NEWLINE = "\n"
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")

# {page: (title, what it says first, what it documents)}; a module stands for all of its public names.
REFERENCE = {
    "python": (
        "Python API",
        "What `from marl import …`, `from agents import …` and `from envs import …` give. "
        "[From Python](../guides/extending.md#from-python) shows them together.",
        ["agents.building.tasks.make_task", "marl.launch.from_python.train", "marl.config.presets.preset",
         "marl.engine.trainer.Trainer", "marl.optim.optimizer_config.OptimizerConfig",
         "marl.optim.lr_schedule.ScheduleConfig", "agents.policies.policy.Policy", "agents.policies.policy.forget",
         "agents.deploy.live_page.live_page", "agents.deploy.live_page.replay_page",
         "agents.deploy.client.Client", "agents.deploy.client.Session", "agents.deploy.client.ServerRefused",
         "agents.deploy.page_frame.show_page",
         "marl.launch.build.build_task", "marl.launch.build.rebuild", "marl.core.errors"],
    ),
    "contracts": (
        "Contracts",
        "What the engine asks of a task, an environment, an algorithm, a callback and a logger.",
        ["marl.task.Task", "envs.base.Env", "envs.base.Transition", "envs.base.EnvError", "envs.base.ActionError",
         "envs.spec.EnvSpec", "envs.spec.GroupSpec", "envs.spec.ActionSpec", "envs.spec.ObservationPart",
         "agents.algorithms.base.Algorithm", "agents.algorithms.on_policy.OnPolicyAlgorithm",
         "agents.algorithms.off_policy.replayed.Replayed", "agents.tasks.rl_task.RLTask",
         "agents.tasks.on_policy.OnPolicy", "agents.tasks.off_policy.OffPolicy",
         "agents.tasks.short_horizon.ShortHorizon", "marl.supervised.task.Supervised",
         "marl.callbacks.base.Callback", "marl.loggers.loggers.Logger"],
    ),
    "algorithms": (
        "Algorithms",
        "Settings by name, as after `algo=`, and the classes that they build. [Algorithms](../algorithms.md) and "
        "[values of actions](../off_policy.md) explain them; the files of `conf/algo` say what each key is.",
        ["agents.building.algorithms", "agents.algorithms.ppo.PPO", "agents.algorithms.ppo.PPOLoss",
         "agents.algorithms.pqn.PQN", "agents.algorithms.shac.SHAC",
         "agents.algorithms.off_policy.q_learning.QLearning", "agents.algorithms.off_policy.ddpg.DDPG",
         "agents.algorithms.off_policy.sac.SAC"],
    ),
    "networks": (
        "Networks",
        "Each is built as `Network(in_shape, out_features, …)` and serves actors, critics and models alike. "
        "[A network](../guides/extending.md#a-network) has how to add one.",
        [f"marl.networks.{name}" for name in (
            "mlp.MLP", "cnn.CNN", "recurrent.GRU", "recurrent.LSTM", "team.DeepSets", "team.Attention", "team.Graph",
            "multi.network.Multi", "multi.part.Part", "embedding.Embedding", "linear.Linear", "polynomial.Polynomial",
            "per_agent.PerAgent", "autoencoder.AutoEncoder", "autoencoder.VAE")],
    ),
    "losses": (
        "Losses",
        "Modules `forward(outputs, target)`, for supervised tasks; those of torch can be named too.",
        ["marl.losses.objectives", "marl.losses.comparisons", "agents.algorithms.ppo_losses"],
    ),
    "environments": (
        "Environments",
        "Environments in bulk, by the contract `envs.base.Env`.",
        ["envs.vmas.env.VmasEnv", "envs.vmas.env.SlowPath", "envs.adapters.gymnasium_env.GymnasiumEnv",
         "envs.adapters.gymnasium_env.PettingZooEnv", "envs.adapters.vector_env.VectorEnv",
         "envs.adapters.torchrl_env.FromTorchRL", "envs.adapters.to_gymnasium", "envs.adapters.to_torchrl"],
    ),
}  # fmt: skip


def on_config(config):
    """Anchors of headings as GitHub makes them, so that a link works in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = lambda text, separator: slug(text)
    return config


def on_files(files, config):
    """Add the pages that no file of docs/ holds."""
    pages = {page: linked((ROOT / name).read_text(), name) for name, page in TOP.items()}
    pages |= {SHOWN[NOTEBOOK]: notebook(json.loads((ROOT / NOTEBOOK).read_text())), SHOWN[GALLERY]: gallery()}
    pages[EXAMPLES] = examples()
    pages |= {f"reference/{name}.md": reference(*REFERENCE[name]) for name in REFERENCE}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    check_reference()
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the pages of docs/ to what lies above or beside the site's pages."""
    return linked(markdown, f"docs/{page.file.src_uri}") if page.file.generated_by is None else markdown


def linked(markdown: str, source: str) -> str:
    """The text of a file of the repository, its links being those of the site.

    source: its path from the root, such as README.md.
    """
    page = SHOWN.get(source, source.removeprefix("docs/"))

    def replaced(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        anchor = match[3] or ""
        if path == "docs/examples" or path.startswith("docs/examples/"):
            target = EXAMPLES
            anchor = f"#{slug(path.removeprefix('docs/examples/'))}" if path != "docs/examples" else ""
        else:
            target = SHOWN.get(path, path.removeprefix("docs/"))
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replaced, markdown)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def examples() -> str:
    """A page with every file of docs/examples."""
    parts = ["# Examples", "[Extending](guides/extending.md) goes through these files, and [gradients](gradients.md) "
                           "through those below `gradients/`."]  # fmt: skip
    folder = ROOT / "docs" / "examples"
    for path in sorted(folder.rglob("*")):
        if path.suffix in LANGUAGES and "__pycache__" not in path.parts:
            code = path.read_text().rstrip()
            parts.append(f"## {path.relative_to(folder)}\n\n```{LANGUAGES[path.suffix]}\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def notebook(content: dict) -> str:
    """A notebook and the outputs that are stored in it, as Markdown. content: the file's JSON."""
    parts = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else linked(source, NOTEBOOK))
        parts += [output(each) for each in cell.get("outputs", ())]
    parts.append(f"[This page as a notebook]({posixpath.basename(NOTEBOOK)}), to run and to change.")
    return "\n\n".join(parts) + "\n"


def output(content: dict) -> str:
    """An output of a notebook's cell: HTML, else a picture, else text."""
    kinds = {kind: "".join(value) for kind, value in content.get("data", {}).items()}
    if "text/html" in kinds:  # on one line: an empty line would end what Markdown leaves alone
        return f"<div>{kinds['text/html'].replace(NEWLINE, '&#10;')}</div>"
    if "image/png" in kinds:
        picture = kinds["image/png"].replace(NEWLINE, "")
        return f'<div><img alt="what the code above draws" src="data:image/png;base64,{picture}"></div>'
    text = kinds["text/plain"] if kinds else "".join(content["text"])
    return f"```text\n{text.rstrip()}\n```"


def gallery() -> str:
    """A page that shows the zoo: the gallery in a frame, and below it the live page that one chooses."""
    zoo = (ROOT / GALLERY).parent
    names = [path.stem for path in sorted((zoo / "live").glob("*.html"))]
    links = " · ".join(f'<a href="zoo/live/{name}.html" target="live">{name}</a>' for name in names)
    return "\n\n".join([
        "# Gallery",
        "Trained teams of the [zoo](guides/zoo.md), each in a short loop of one of its episodes.",
        frame("zoo/gallery.html", "gallery", 760),
        "## Join in",
        "Here a team plays in your browser, and you may join in. [Looking](guides/looking.md) explains the page.",
        f"<p>{links}</p>",
        frame(f"zoo/live/{names[0]}.html", "live", 760),
    ]) + "\n"  # fmt: skip


def frame(address: str, name: str, height: int) -> str:
    """A page within a page, loaded when it comes into view; links with `target=name` open in it."""
    style = f"width: 100%; height: {height}px; border: 1px solid {LIGHT['edge']}; border-radius: 4px"
    names = f'name="{name}" title="{name}" src="{html.escape(address)}"'
    return f'<div><iframe {names} loading="lazy" style="{style}"></iframe></div>'


def reference(title: str, text: str, names: list[str]) -> str:
    """A page of the reference, for mkdocstrings."""
    return "\n\n".join([f"# {title}", text, *(f"::: {name}" for name in names)]) + "\n"


def check_reference() -> None:
    """Warn of every public name without a docstring: `strict` then ends the build."""
    names = [name.partition(".") for _, _, names in REFERENCE.values() for name in names]
    loader = griffe.GriffeLoader(search_paths=[str(ROOT)])
    packages = {package: loader.load(package) for package in dict.fromkeys(package for package, _, _ in names)}
    for package, _, name in names:
        for path in undocumented(packages[package][name]):
            log.warning("%s has no docstring, and stands in the reference", path)


def undocumented(each, inherited: bool = False):
    """Paths of what lacks a docstring, of a module, class or function and what it holds."""
    if not (each.has_docstring or inherited):
        yield each.path
    if not (each.is_class or each.is_module):
        return
    above = each.mro() if each.is_class else []
    for name, member in each.members.items():
        if name.startswith("_") or member.is_alias:
            continue
        if not (member.is_class or member.is_function or "property" in member.labels):
            continue
        # What a module's `forward` maps is said by its class, and what a method is for by the class it overrides.
        told = name == "forward" or any(name in base.members and base.members[name].has_docstring for base in above)
        yield from undocumented(member, told)
