"""Gathers the pages of the documentation site: `python .ci/site_pages.py FOLDER` fills FOLDER and prints MkDocs' file.

A page stands in FOLDER where it stands in the repository, so that links between pages need no change. Added are a page
for each public module, a page for the section on extending, and the gallery.
"""

import ast
import importlib.resources
import json
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("vaejax", "experiments", "notebooks", "tests")
LIBRARY, COMMANDS = "vaejax/README.md", "experiments/README.md"
EXTENDING = "vaejax/extending.md"
SECTIONS = {
    "Home": {"Home": "README.md", "Changes": "CHANGELOG.md"},
    "Library": {"Library": LIBRARY, "Extending": EXTENDING, "Coming from": "vaejax/COMING_FROM.md"},
    "Commands": {"Commands": COMMANDS, "Gallery": "experiments/gallery.md"},
}
CODE = r"^ *```.*?^ *```$|`[^`\n]+`"


def with_own_page(pages, page, section, target):
    """Move a section of a page to a page of its own, and every link to it."""
    before, heading, after = pages[page].partition(f"\n## {section}\n")
    if not heading:
        raise ValueError(f"{page} has no section {section}: name one that it has in .ci/site_pages.py")
    anchor = section.lower().replace(" ", "-")
    folder, name = page.rpartition("/")[0], target.rpartition("/")[2]
    pages = {**pages, page: before, target: f"# {section}\n{after}"}
    pages[page] = pages[page].replace(f"(#{anchor})", f"({name})")
    link = f"{folder}/README.md#{anchor}"
    return {path: text.replace(link, f"{folder}/{name}") for path, text in pages.items()}


def gallery(commands):
    """The page of pictures, from the table of them on the page of the commands."""
    rows = re.findall(r"^\| \[[^]]*\]\((pictures/[^)]+)\) \| (.+?) \| (`.+) \|$", commands, re.MULTILINE)
    pictures = [f"## {caption}\n\n![{caption}]({path})\n\nDrawn by {command}.\n" for path, caption, command in rows]
    return "\n".join(["# Gallery\n\nEach picture, and [the command](README.md) that draws it.\n", *pictures])


def public_modules():
    """The public modules: name to file, as the package binds them."""
    package = ast.parse((ROOT / "vaejax/__init__.py").read_text())
    files = {}
    for node in package.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                path = ROOT / node.module.replace(".", "/") / alias.name
                files[alias.name] = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return dict(sorted(files.items()))


def public_names(path):
    """Names that a module makes public, each with the module that it is imported from (None: it is defined there)."""
    body = ast.parse(path.read_text()).body
    listed, imported, defined = None, {}, []
    for node in body:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if ast.unparse(target) == "__all__":
                    listed = ast.literal_eval(node.value)
                elif isinstance(target, ast.Name):
                    defined.append(target.id)
    names = listed if listed is not None else sorted(name for name in defined if not name.startswith("_"))
    return {name: imported.get(name) for name in names}


def api_page(module, modules):
    """One module's page: an entry for each public name, or a link where another page has it."""
    homes = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): name
        for name, path in modules.items()
    }
    entries, elsewhere = [], []
    for name, origin in public_names(modules[module]).items():
        home = homes.get(f"{origin}.{name}") if origin else None
        if home:
            elsewhere.append(f"[`{name}`]({home}.md)")
        elif origin and homes.get(origin, module) != module:
            elsewhere.append(f"[`{homes[origin]}.{name}`]({homes[origin]}.md#vaejax.{homes[origin]}.{name})")
        else:
            entries.append(f"::: vaejax.{module}.{name}\n")
    about = (
        f"::: vaejax.{module}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}\n"
    )
    others = f"On pages of their own: {', '.join(elsewhere)}.\n" if elsewhere else ""
    return "\n".join([f"# vaejax.{module}\n", about, others, *entries])


def markdown_pages():
    """Path to text of every page in Markdown, those of the repository and those made of them."""
    modules = public_modules()
    own = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    own += [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]
    pages = {path.relative_to(ROOT).as_posix(): path.read_text() for path in own}
    pages = with_own_page(pages, LIBRARY, "Extending", EXTENDING)
    pages["experiments/gallery.md"] = gallery(pages[COMMANDS])
    pages |= {f"api/{module}.md": api_page(module, modules) for module in modules}
    return pages


def notebook_page(path):
    """A notebook with its links to pages as links to what is built of them, which its plugin does not make."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\]\(((?!https?:)[^)#\s]+)", lambda link: f"]({built(link[1])}", "".join(cell["source"]))
            cell["source"] = text
    return json.dumps(notebook)


def built(target):
    """What is built of a page: index.html of README.md, and the like."""
    return re.sub(r"\.(?:md|ipynb)$", ".html", re.sub(r"README\.md$", "index.md", target))


def other_files(pages):
    """Files that the pages link to or show and that are no pages: pictures, the licence."""
    files = set()
    for page, text in pages.items():
        prose = re.sub(CODE, "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r'\]\(((?!https?:|#)[^)#\s]+)|src="((?!https?:)[^"]+)"', prose):
            path = (ROOT / page).parent.joinpath("".join(target)).resolve()
            if path.is_file() and path.suffix not in (".md", ".ipynb"):
                files.add(path.relative_to(ROOT).as_posix())
    return files


def navigation(notebooks):
    """The order of the pages, as MkDocs takes it."""
    titles = {"Notebooks": "notebooks/README.md"}
    titles |= {path.stem.replace("_", " "): path.relative_to(ROOT).as_posix() for path in notebooks}
    modules = {f"vaejax.{module}": f"api/{module}.md" for module in public_modules()}
    sections = {**SECTIONS, "Notebooks": titles, "API": modules, "Tests": {"Tests": "tests/README.md"}}
    return [{name: [{title: path} for title, path in pages.items()]} for name, pages in sections.items()]


def gather(folder):
    """Write all pages into the folder, with the pictures and files that they link to; returns their order."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages = markdown_pages()
    texts = pages | {path.relative_to(ROOT).as_posix(): notebook_page(path) for path in notebooks}
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for path in other_files(pages):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return navigation(notebooks)


def main(folder):
    """Fill the folder and print MkDocs' configuration."""
    order = gather(folder)
    mathjax = importlib.resources.files("mathjax") / "static/mathjax/es5/tex-svg.js"
    for path in (ROOT / ".ci/site.css", ROOT / ".ci/site.js", mathjax):
        shutil.copy(path, folder)
    # JSON is YAML.
    print(json.dumps({"INHERIT": str(ROOT / ".ci/site.yml"), "docs_dir": str(folder), "nav": order}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
