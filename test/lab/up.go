package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/weft-cni/weft/test/lab/manifest"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const (
	lockFile = "lock"
	// inputFile has the manifests that came from the standard input.
	inputFile = "input.yaml"
	// downTimeout bounds how long removing a lab may take.
	downTimeout = time.Minute
)

// Up brings a lab up and returns when all its pods are connected. When it fails or is interrupted, nothing of the lab
// stays. serve is the command that runs Serve with the options that follow it; say is told what happens.
func Up(ctx context.Context, opt Options, serve []string, say func(string)) error {
	group, err := groupOf(opt.Name)
	if err != nil {
		return err
	}
	if err := opt.check(); err != nil {
		return err
	}
	dir := directory(opt.Name)
	unlock, err := lockOf(dir).Lock()
	if err != nil {
		return fmt.Errorf("bring up the lab %q: %w", opt.Name, err)
	}
	defer unlock()
	if s, err := ReadStatus(ctx, opt.Name); err == nil && s.Up {
		return fmt.Errorf("the lab %q is up already, since %s; `weft-lab down` takes it down", opt.Name,
			s.Since.Format(time.DateTime))
	}
	left, err := group.Leftovers()
	if err != nil {
		return err
	}
	if len(left) > 0 {
		say("removing what an interrupted lab of this name left")
		if err := remove(ctx, group, dir, lockFile); err != nil {
			return err
		}
	}
	if err = makeDirectory(dir); err == nil { // remove may have taken it
		opt, err = opt.keepInput(dir)
	}
	if err == nil {
		err = start(ctx, group, dir, append(serve, opt.arguments()...), say)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if undo := remove(context.WithoutCancel(ctx), group, dir); undo != nil {
		return fmt.Errorf("%w; and removing what had been started failed, `weft-lab down` tries again: %w", err, undo)
	}
	return err
}

// check refuses what could not work before anything is started.
func (opt Options) check() error {
	if _, err := Check(opt); err != nil {
		return err
	}
	return CheckMachine(opt)
}

// keepInput puts the input into a file of the lab, where the daemon finds it.
func (opt Options) keepInput(dir string) (Options, error) {
	i := slices.Index(opt.Manifests, manifest.Stdin)
	if i < 0 {
		return opt, nil
	}
	opt.Manifests = slices.Clone(opt.Manifests)
	opt.Manifests[i] = filepath.Join(dir, inputFile)
	if err := os.WriteFile(opt.Manifests[i], opt.Input, 0o600); err != nil {
		return opt, fmt.Errorf("keep the manifests of the standard input: %w", err)
	}
	return opt, nil
}

// arguments are the flags that make Options what they are, without the input.
func (opt Options) arguments() []string {
	args := []string{"--name=" + opt.Name, "--nodes=" + strconv.Itoa(opt.Nodes),
		"--segments=" + strconv.Itoa(opt.Segments), "--tunnel=" + string(opt.Tunnel),
		"--datapath=" + string(opt.Datapath), "--ip-family=" + string(opt.Family), "--agent=" + opt.Agent}
	for _, path := range opt.Manifests {
		args = append(args, "--file="+path)
	}
	for _, path := range opt.Kustomizations {
		args = append(args, "--kustomize="+path)
	}
	for _, setting := range opt.Settings {
		args = append(args, "--set="+setting)
	}
	return args
}

func makeDirectory(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o700); err != nil {
		return fmt.Errorf("make the lab's directory: %w", err)
	}
	return nil
}

// start runs the daemon and waits until it says that the lab is up.
func start(ctx context.Context, group sandbox.Group, dir string, args []string, say func(string)) error {
	cgroup := cgroupOf(group)
	if err := cgroup.Create(); err != nil {
		return err
	}
	log := filepath.Join(dir, "logs", "lab.log")
	running, err := cgroup.StartDaemon(sandbox.Daemon{Args: args, Log: log})
	if err != nil {
		return err
	}
	daemon := program{name: "the lab's daemon", log: log, running: running}
	// The socket's file is there before there is a listener, so its presence says nothing.
	if err := daemon.wait(ctx, func(ctx context.Context) error { return answers(ctx, dir) }); err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lab/v1/progress", http.NoBody)
	if err != nil {
		return err
	}
	response, err := client(dir).Do(request)
	if err != nil {
		return fmt.Errorf("the lab's daemon does not answer: %w; the end of %s:\n%s", err, log, tail(log))
	}
	defer response.Body.Close()
	for in := json.NewDecoder(response.Body); ; {
		var s step
		if err := in.Decode(&s); err != nil {
			return fmt.Errorf("the lab's daemon ended: %w; the end of %s:\n%s", err, log, tail(log))
		}
		switch {
		case s.Error != "":
			return errors.New(s.Error)
		case s.Done:
			return nil
		}
		say(s.Text)
	}
}

// ErrNotFound is that there is nothing of a lab to take down.
var ErrNotFound = errors.New("there is no lab")

// Removed is what Down has removed.
type Removed struct {
	// Processes are those that were ended: the daemon, Open vSwitch and agents, and what weft-lab exec has started.
	Processes int
	// Files is the lab's directory.
	Files string
}

// Down removes a lab, in whatever state it is; an Up that is still at work is ended. It returns ErrNotFound when there
// is nothing of it.
func Down(ctx context.Context, name string) (Removed, error) {
	group, err := groupOf(name)
	if err != nil {
		return Removed{}, err
	}
	if os.Geteuid() != 0 {
		return Removed{}, errors.New("removing a lab needs root")
	}
	dir := directory(name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		left, err := group.Leftovers()
		if err != nil {
			return Removed{}, err
		}
		if len(left) == 0 {
			return Removed{}, fmt.Errorf("%w %q%s", ErrNotFound, name, others())
		}
	}
	// An Up that is still at work is ended.
	unlock, err := lockOf(dir).Seize(ctx)
	if err != nil {
		return Removed{}, fmt.Errorf("take down the lab %q: %w", name, err)
	}
	defer unlock()
	processes, err := group.Cgroup().PIDs()
	if err != nil {
		return Removed{}, err
	}
	return Removed{Processes: len(processes), Files: dir}, remove(ctx, group, dir)
}

// remove ends all processes of the lab, with all that they held open, and deletes its files but those named.
func remove(ctx context.Context, group sandbox.Group, dir string, keep ...string) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := group.Destroy(ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the lab's files: %w", err)
	}
	for _, e := range entries {
		if len(keep) > 0 && e.Name() == keep[0] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the lab's files: %w", err)
		}
	}
	if len(keep) > 0 {
		return nil
	}
	// The directory of all labs goes with the last of them.
	for _, d := range []string{dir, Root} {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("remove the lab's files: %w", err)
		}
	}
	return nil
}

// lockOf makes sure that one Up at a time works on a lab.
func lockOf(dir string) sandbox.LockFile {
	return sandbox.LockFile{Path: filepath.Join(dir, lockFile), DirMode: 0o700}
}
