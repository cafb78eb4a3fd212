package machine

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// dependencies are the modules of a kernel, by name, as depmod lists them: where each lies and what it needs.
type dependencies map[string]moduleInfo

type moduleInfo struct {
	path  string   // below the directory of the kernel's modules
	needs []string // paths; what those need is among them
}

func readDependencies(modules string) (dependencies, error) {
	data, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read the modules' dependencies: %w", err)
	}
	return parseDependencies(string(data)), nil
}

func parseDependencies(text string) dependencies {
	found := dependencies{}
	for line := range strings.Lines(text) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			found[moduleName(file)] = moduleInfo{path: file, needs: strings.Fields(needs)}
		}
	}
	return found
}

// moduleName is how a file's module is called; the kernel does not tell dashes from underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// order returns the files of the modules and of all that they need, each behind what it needs itself.
func (d dependencies) order(names ...string) ([]string, error) {
	var files []string
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if done[name] {
			return nil
		}
		done[name] = true
		info, ok := d[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		for _, need := range info.needs {
			if err := add(need); err != nil {
				return err
			}
		}
		files = append(files, info.path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}
