"""Mistakes of a YAML file: where it is no YAML, and keys that stand twice, of which YAML keeps the last."""

from pathlib import Path

from kdag.job.errors import UserError


def problems(path: Path) -> list[str]:
    """`file, line n: ...`, none for a good file."""
    import yaml

    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path}: cannot be read as UTF-8 text: {error}"]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return [f"{path}, line {mark.line + 1}: no YAML: {error.problem or error.context}"]
    except yaml.YAMLError as error:
        return [f"{path}: no YAML: {' '.join(str(error).split())}"]
    if not isinstance(root, yaml.MappingNode):
        return [f"{path}: keys with values are needed at the top"]
    return [f"{path}, line {line}: {text}" for line, text in repeated(root)]


def read_config(path: Path):
    """The kdag.config.Config of a file; UserError with every mistake, as Snakemake would refuse it."""
    import yaml

    from kdag.config.load import load_config

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if mistakes := problems(path):
        raise UserError("\n".join(mistakes))
    return load_config(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def repeated(node, seen=()) -> list[tuple[int, str]]:
    """(line, text) of every key that its mapping already has; anchors are followed once."""
    if node in seen:
        return []
    found = []
    if hasattr(node.value, "append") and node.value and isinstance(node.value[0], tuple):
        lines = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key.value, str) and key.value in lines and key.value != "<<":
                text = f"`{key.value}` stands in line {lines[key.value]} already; only the last is kept"
                found.append((line, text))
            if isinstance(key.value, str):
                lines[key.value] = line
            found += repeated(value, (*seen, node))
    elif isinstance(node.value, list):
        for item in node.value:
            found += repeated(item, (*seen, node))
    return found
