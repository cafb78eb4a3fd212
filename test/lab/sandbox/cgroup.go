package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupTop is the cgroup that holds all groups.
const cgroupTop = "weft-lab"

// daemonsLeaf is the child cgroup that a member's processes are in. cgroup v2 forbids processes in a cgroup whose
// children have controllers, and a member may create such children (a kubelet does).
const daemonsLeaf = "daemons"

// pollInterval is how often a condition of the kernel is looked at again.
const pollInterval = 10 * time.Millisecond

// Cgroup is a path below every cgroup hierarchy of the machine: version 1's several, version 2's one, or both.
type Cgroup string

// Child is a cgroup inside c.
func (c Cgroup) Child(name string) Cgroup { return c + "/" + Cgroup(name) }

// Path is the cgroup as programs name it, from the root of a hierarchy.
func (c Cgroup) Path() string { return "/" + string(c) }

// Create makes the cgroup in every hierarchy, with all controllers that there are: a kubelet insists on them.
// cpuset.cpus and cpuset.mems are copied down from the root, because a version 1 cpuset without them accepts no
// process.
func (c Cgroup) Create() error {
	hierarchies, err := mountedHierarchies()
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", c, err)
	}
	for _, h := range hierarchies {
		dir := h.mount
		for part := range strings.SplitSeq(string(c.Child(daemonsLeaf)), "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := h.passControllers(parent); err != nil {
				return fmt.Errorf("create cgroup %s: %w", c, err)
			}
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup %s: %w", c, err)
			}
			if err := h.inheritCPUs(parent, dir); err != nil {
				return fmt.Errorf("create cgroup %s: %w", c, err)
			}
		}
	}
	return nil
}

// Enter returns a command prefix: what follows it starts inside the cgroup, and is never outside it.
func (c Cgroup) Enter() ([]string, error) {
	hierarchies, err := mountedHierarchies()
	if err != nil {
		return nil, err
	}
	const join = `until [ "$1" = -- ]; do echo $$ >"$1" || exit 126; shift; done; shift; exec "$@"`
	argv := []string{"/bin/sh", "-c", join, "sh"}
	for _, h := range joined(hierarchies) {
		argv = append(argv, filepath.Join(h.mount, string(c), daemonsLeaf, "cgroup.procs"))
	}
	return append(argv, "--"), nil
}

// StartDaemon starts a process in the cgroup and in the caller's namespaces.
func (c Cgroup) StartDaemon(d Daemon) (Running, error) {
	enter, err := c.Enter()
	if err != nil {
		return Running{}, fmt.Errorf("start %s: %w", d.Args[0], err)
	}
	return d.start(enter)
}

// PIDs are the processes in the cgroup and below it.
func (c Cgroup) PIDs() ([]int, error) {
	dirs, err := c.directories()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", c, err)
		}
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("list processes of cgroup %s: %w", dir, err)
			}
			if pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Kill ends every process in the cgroup and below it, and returns when none is left. It looks again after every round,
// since a process may fork while the others are being killed.
func (c Cgroup) Kill(ctx context.Context) error {
	for {
		pids, err := c.PIDs()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, c, err)
			}
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("processes %v of cgroup %s do not end: %w", pids, c, err)
		}
	}
}

// Remove ends what still runs in the cgroup, and deletes it and everything below it from every hierarchy, and the
// parents that this leaves empty.
func (c Cgroup) Remove(ctx context.Context) error {
	for {
		dirs, err := c.directories()
		if err != nil {
			return err
		}
		slices.Reverse(dirs) // children first
		var busy error
		for _, dir := range dirs {
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
				busy = fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
		if busy == nil {
			return c.removeEmptyParents()
		}
		// A cgroup stays busy for a moment after its last process has ended; and a process whose parent was killed while it
		// was on its way here arrives only now.
		if err := c.Kill(ctx); err != nil {
			return errors.Join(busy, err)
		}
		if err := pause(ctx); err != nil {
			return errors.Join(busy, err)
		}
	}
}

func (c Cgroup) removeEmptyParents() error {
	hierarchies, err := mountedHierarchies()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		for parent := filepath.Dir(string(c)); parent != "."; parent = filepath.Dir(parent) {
			err := syscall.Rmdir(filepath.Join(h.mount, parent))
			if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.ENOTEMPTY) {
				break // another group's
			}
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				return fmt.Errorf("remove cgroup %s: %w", parent, err)
			}
		}
	}
	return nil
}

// directories lists the cgroup and everything below it in every hierarchy, parents first.
func (c Cgroup) directories() ([]string, error) {
	hierarchies, err := mountedHierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hierarchies {
		err := filepath.WalkDir(filepath.Join(h.mount, string(c)), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", c, err)
		}
	}
	return dirs, nil
}

// hierarchy is one mounted cgroup tree.
type hierarchy struct {
	mount string
	v2    bool
	// options are the mount's, which name a version 1 hierarchy's controllers.
	options []string
}

func mountedHierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup mounts: %w", err)
	}
	found := parseHierarchies(string(data))
	if len(joined(found)) == 0 {
		return nil, errors.New("no usable cgroup hierarchy is mounted below /sys/fs/cgroup: mount cgroup2 there, or " +
			"version 1's pids, freezer or systemd")
	}
	return found, nil
}

func parseHierarchies(mountinfo string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(mountinfo) {
		mount, fsInfo, ok := strings.Cut(line, " - ")
		fields, fsFields := strings.Fields(mount), strings.Fields(fsInfo)
		if !ok || len(fields) < 5 || len(fsFields) < 3 || fields[3] != "/" {
			continue
		}
		h := hierarchy{mount: fields[4], v2: fsFields[0] == "cgroup2", options: strings.Split(fsFields[2], ",")}
		known := slices.ContainsFunc(found, func(other hierarchy) bool { return other.mount == h.mount })
		if strings.HasPrefix(fsFields[0], "cgroup") && strings.HasPrefix(h.mount, "/sys/fs/cgroup") && !known {
			found = append(found, h)
		}
	}
	return found
}

// joined picks the hierarchies that processes are put in to be found again: those that account for nothing and limit
// nothing. Of version 1 that leaves the memory and cpu controllers as the caller's machine has them.
func joined(hierarchies []hierarchy) []hierarchy {
	var found []hierarchy
	for _, h := range hierarchies {
		for _, name := range []string{"pids", "freezer", "name=systemd"} {
			if !h.v2 && slices.Contains(h.options, name) {
				found = append(found, h)
				break
			}
		}
	}
	if len(found) > 0 {
		return found
	}
	return slices.DeleteFunc(slices.Clone(hierarchies), func(h hierarchy) bool { return !h.v2 })
}

// passControllers makes the controllers that a version 2 cgroup has available to its children. In version 1 they are.
// Where the parent holds processes, which forbids it (in a container, the root does), a caller that needs a controller
// finds out itself.
func (h hierarchy) passControllers(dir string) error {
	if !h.v2 {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(controllers)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("pass controller %s on to the children of %s: %w", controller, dir, err)
		}
	}
	return nil
}

func (h hierarchy) inheritCPUs(parent, dir string) error {
	if h.v2 {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(have)) != "" {
			continue // another controller's hierarchy, or filled in already
		}
		if err != nil {
			return err
		}
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pause waits one poll interval, or returns the context's error.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}
