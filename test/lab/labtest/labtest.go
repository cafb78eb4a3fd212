// Package labtest runs labs in tests, as a person would: through weft-lab. Tests that use it run on either datapath,
// which the environment variable WEFT_DATAPATH chooses, and take the programs from WEFT_BIN where there is no Go
// toolchain.
//
// A Lab belongs to the test that brought it up and is taken down with it.
package labtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/lab"
)

// Datapath is the datapath that the tests run on.
func Datapath() config.Datapath {
	if name := os.Getenv("WEFT_DATAPATH"); name != "" {
		return config.Datapath(name)
	}
	return config.DatapathNetdev
}

// programs are the packages of the programs that the tests need.
var programs = []string{"./test/weft-lab", "./cmd/weft-agent", "./cmd/weftctl", "./test/e2e/probe"}

// built is where Main has the programs built.
var built string

// Main runs a package's tests, and removes the programs that were built for them: TestMain calls it.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-labtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "labtest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	built = dir
	return m.Run()
}

// bin is the directory with the programs, which are built once for a test binary.
var bin = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("WEFT_BIN"); dir != "" {
		return dir, nil
	}
	if built == "" {
		return "", errors.New("the package's TestMain does not call labtest.Main")
	}
	repo, err := testenv.Repository()
	if err != nil {
		return "", err
	}
	for _, pkg := range programs {
		if _, err := testenv.Program(context.Background(), repo, pkg, built); err != nil {
			return "", err
		}
	}
	return built, nil
})

// Program is the path of one of the programs: weft-lab, weft-agent, weftctl or probe.
func Program(t testing.TB, name string) string {
	t.Helper()
	dir, err := bin()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// Write puts manifests into a directory of their own.
func Write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Command makes the command `weft-lab ARGS`.
func Command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command(Program(t, "weft-lab"), args...)
}

// Run runs a command and returns its standard output; the error has its standard error.
func Run(cmd *exec.Cmd) (string, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out.String(), nil
}

// Lab is a lab that stands.
type Lab struct {
	Name string
	t    testing.TB
}

// Up brings a lab up, on the datapath of the tests. The arguments are those of `weft-lab up`.
func Up(t testing.TB, name string, args ...string) *Lab {
	t.Helper()
	l := &Lab{Name: name, t: t}
	Down(t, name) // what a test that was killed left
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs()
		}
		Down(t, name)
	})
	if _, err := Run(Command(t, append([]string{"up", "--name=" + name, "--datapath=" + string(Datapath())},
		args...)...)); err != nil {
		t.Fatal(err)
	}
	return l
}

// Down takes a lab down, if there is one.
func Down(t testing.TB, name string) {
	t.Helper()
	if _, err := Run(Command(t, "down", "--ignore-not-found", "--name="+name)); err != nil {
		t.Error(err)
	}
}

// showLogs shows the end of every log of the lab, for a test that failed.
func (l *Lab) showLogs() {
	files, err := filepath.Glob(filepath.Join(lab.Root, l.Name, "logs", "*"))
	if err != nil {
		return
	}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			l.t.Logf("the end of %s:\n%s", file, b[max(0, len(b)-3000):])
		}
	}
}

// Status asks how the lab is.
func (l *Lab) Status() lab.Status {
	l.t.Helper()
	s, err := lab.ReadStatus(l.t.Context(), l.Name)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// Pod returns the pod of a name.
func (l *Lab) Pod(name string) lab.PodStatus {
	l.t.Helper()
	p, err := l.Status().Find(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// Probe sends packets from every pod to every port. On a machine that is known to be slow it is more patient.
func (l *Lab) Probe() lab.Report {
	l.t.Helper()
	r, err := lab.ReadProbe(l.t.Context(), l.Name, testenv.Patience(lab.ProbeTimeout))
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// Exec makes the command that runs another in a pod or on node/NAME.
func (l *Lab) Exec(where string, args ...string) *exec.Cmd {
	l.t.Helper()
	return Command(l.t, append([]string{"exec", "--name=" + l.Name, where, "--"}, args...)...)
}

// Run runs a command in a pod or on node/NAME and returns its standard output.
func (l *Lab) Run(where string, args ...string) string {
	l.t.Helper()
	out, err := Run(l.Exec(where, args...))
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// Ask runs the test pods' probe in a pod or on node/NAME: the request goes in as JSON, the reply comes out as JSON.
func (l *Lab) Ask(where string, request, reply any, args ...string) {
	l.t.Helper()
	in, err := json.Marshal(request)
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := l.Exec(where, append([]string{Program(l.t, "probe")}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := Run(cmd)
	if err == nil {
		err = json.Unmarshal([]byte(out), reply)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}
