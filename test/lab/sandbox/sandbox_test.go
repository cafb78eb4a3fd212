package sandbox

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseGroup(t *testing.T) {
	for _, name := range []string{"weft", "a", "lab12345"} {
		if g, err := ParseGroup(name); err != nil || string(g) != name {
			t.Errorf("ParseGroup(%q) = %q, %v; want the name", name, g, err)
		}
		if link := Group(name).HostLink(); len(link) > 15 {
			t.Errorf("HostLink of %q is %q: longer than the kernel allows", name, link)
		}
	}
	for _, name := range []string{"", "Weft", "1weft", "we-ft", "we/ft", "..", "toolongname"} {
		if _, err := ParseGroup(name); err == nil {
			t.Errorf("ParseGroup(%q) succeeded", name)
		}
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a) S (b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21\n"
	start, state, err := parseStat(line)
	if err != nil || start != 987654 || state != "Z" {
		t.Errorf("parseStat = %d, %q, %v; want 987654, Z", start, state, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2", strings.Replace(line, "987654", "x", 1)} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) succeeded", bad)
		}
	}
}

func TestProcessIdentity(t *testing.T) {
	self, err := FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Errorf("this process counts as dead")
	}
	reused := Process{PID: self.PID, Start: self.Start - 1}
	if reused.Alive() {
		t.Errorf("another process's id with our number counts as alive")
	}
	if err := reused.Signal(9); err != nil {
		t.Errorf("signalling a process that is gone: %v", err)
	}
}

const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:3 - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:36 / /var/lib/chroot/pids rw,relatime - cgroup cgroup rw,pids
51 31 0:36 /part /sys/fs/cgroup/part rw,relatime - cgroup cgroup rw,pids
`

func TestParseHierarchies(t *testing.T) {
	mounts := func(hs []hierarchy) (names []string) {
		for _, h := range hs {
			names = append(names, h.mount)
		}
		return names
	}
	all := parseHierarchies(hybrid)
	want := []string{"/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"}
	if diff := cmp.Diff(want, mounts(all)); diff != "" {
		t.Errorf("hierarchies (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/systemd"}, mounts(joined(all))); diff != "" {
		t.Errorf("joined hierarchies (-want +got):\n%s", diff)
	}
	unified := parseHierarchies("35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
	if diff := cmp.Diff([]string{"/sys/fs/cgroup"}, mounts(joined(unified))); diff != "" {
		t.Errorf("joined hierarchies of a machine with cgroup v2 only (-want +got):\n%s", diff)
	}
}

func TestSetupScriptQuotes(t *testing.T) {
	script := setupScript("node1", Files{Binds: []Bind{{Source: "/a b/it's", Target: "/c d"}}})
	lines := strings.Split(script, "\n")
	if !slices.Contains(lines, `mount --bind '/a b/it'\''s' /run/stage/0`) ||
		!slices.Contains(lines, `mount --move /run/stage/0 '/c d'`) {
		t.Errorf("paths with blanks and quotes are not quoted:\n%s", script)
	}
}
