package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/kernel/machine/plan"
)

// rootModules are what the guest needs to see its root and to speak.
var rootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// initPackage is the guest's first process.
const initPackage = "./test/kernel/machine/init"

// writeInitrd makes the initial RAM disk: the first process, the modules that it loads, and its plan.
func writeInitrd(ctx context.Context, to string, k Kernel, p plan.Plan) error {
	repo, err := testenv.Repository()
	if err != nil {
		return err
	}
	program, err := testenv.Program(ctx, repo, initPackage, filepath.Dir(to))
	if err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	entries := []entry{{path: "init", mode: 0o755, content: content}}
	deps, err := readDependencies(k.modules())
	if err != nil {
		return err
	}
	files, err := deps.order(rootModules...)
	if err != nil {
		return fmt.Errorf("kernel %s: %w", k.Version, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(k.modules(), file))
		if err != nil {
			return err
		}
		name := path.Base(file)
		p.Modules = append(p.Modules, name)
		entries = append(entries, entry{path: plan.ModuleDir[1:] + "/" + name, mode: 0o644, content: content})
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	entries = append(entries, entry{path: plan.File[1:], mode: 0o644, content: text})
	disk, err := os.Create(to)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := writeCPIO(disk, entries); err != nil {
		return fmt.Errorf("write %s: %w", to, err)
	}
	return disk.Close()
}
