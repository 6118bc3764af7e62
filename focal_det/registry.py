"""Registries of components that a config selects by name, and how a component is built.

A registry finds the components of focal_det by itself: at its first look-up it imports the package
of its base class and registers every concrete subclass defined there. So it is complete whichever
module was imported first, and a new component is a new file. Register components of your own with
`@CLS_LOSS_REGISTRY.register()`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from fvcore.common.registry import Registry

from focal_det.messages import UnknownNameError, describe_unknown


class ComponentRegistry(Registry):
    """fvcore's Registry, filled at the first look-up; errors suggest the nearest known name.

    Args:
        name: of the registry, as in fvcore.
        kind: what messages call its components.
        base: "module:Class" of the base class. A string, as importing the components here would
            invert the import order of the package, and `focal_det.losses` must work without this
            module.
    """

    def __init__(self, name: str, kind: str, *, base: str) -> None:
        super().__init__(name)
        self.kind = kind
        self._base = base
        self._is_filled = False

    def get(self, name: str) -> Any:
        """Return the class registered under `name`.

        Raises:
            UnknownNameError: unknown `name`; suggests the nearest one.
        """
        self._fill()
        if name not in self._obj_map:
            raise UnknownNameError(describe_unknown(self.kind, name, self._obj_map))
        return self._obj_map[name]

    def __contains__(self, name: str) -> bool:
        self._fill()
        return bool(super().__contains__(name))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._fill()
        items: Iterator[tuple[str, Any]] = super().__iter__()
        return items

    def __repr__(self) -> str:
        self._fill()
        return str(super().__repr__())

    def build(self, name: str, args: Mapping[str, Any], **defaults: Any) -> Any:
        """Build the component registered under `name`.

        Args:
            name: of a component.
            args: constructor arguments; an unknown argument is an error.
            defaults: arguments that the caller knows from elsewhere; those that the constructor
                does not take are ignored.

        Raises:
            UnknownNameError: unknown `name`.
            ValueError: an argument that the constructor does not take, or a value that it refuses.
        """
        cls = self.get(name)
        known = get_constructor_args(cls)
        # User arguments: a typo must raise, unlike in `defaults`.
        for key in args:
            if key not in known:
                raise ValueError(describe_unknown(f"argument of {name}", key, known))
        passed = {key: value for key, value in defaults.items() if key in known}
        return cls(**{**passed, **args})

    def _fill(self) -> None:
        """Register the components of focal_det, once."""
        if self._is_filled:
            return
        # Set first: a module of the package may look something up while it is imported.
        self._is_filled = True
        try:
            # Once each: a module may give a class a second name.
            components = list(dict.fromkeys(self._find_components()))
            self._refuse_taken_names(components)
        except BaseException:
            # The next look-up must raise the same error, not report an unknown name.
            self._is_filled = False
            raise
        for component in components:
            self.register(component)

    def _refuse_taken_names(self, components: Iterable[type]) -> None:
        """Refuse taken names before any component is registered: all are registered, or none."""
        for component in components:
            if component.__name__ in self._obj_map:
                raise ValueError(
                    f"{self.kind} {component.__name__!r} is one of focal_det's: choose another name"
                )

    def _find_components(self) -> Iterator[type]:
        """Import the package of the base class; find the concrete subclasses it defines."""
        module_name, class_name = self._base.split(":")
        base = getattr(importlib.import_module(module_name), class_name)
        package = importlib.import_module(module_name.rpartition(".")[0])
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not info.ispkg:
                yield from _find_subclasses(importlib.import_module(info.name), base)


def _find_subclasses(module: ModuleType, base: type) -> Iterator[type]:
    """The concrete subclasses of `base` that a module defines itself."""
    for value in vars(module).values():
        # Not the classes that it imports, which another module registers.
        is_own = inspect.isclass(value) and value.__module__ == module.__name__
        if is_own and issubclass(value, base) and not inspect.isabstract(value):
            yield value


def get_constructor_args(cls: type) -> dict[str, Any]:
    """Name and default of each keyword argument of a component's constructor, in order."""
    parameters = inspect.signature(cls).parameters.values()
    # *args and **kwargs name no argument that a config could have.
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: p.default for p in parameters if p.kind in named}


CLS_LOSS_REGISTRY = ComponentRegistry(
    "FOCAL_DET_CLS_LOSS", "classification loss", base="focal_det.losses.base:ClsLoss"
)
NORMALIZER_REGISTRY = ComponentRegistry(
    "FOCAL_DET_NORMALIZER", "loss normalizer", base="focal_det.losses.normalizers:Normalizer"
)
ASSIGNER_REGISTRY = ComponentRegistry(
    "FOCAL_DET_ASSIGNER", "assigner", base="focal_det.modeling.assigners:Assigner"
)
