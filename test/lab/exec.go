package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/weft-cni/weft/test/lab/sandbox"
)

// Exec runs a command in a pod's network namespace, with the pod's host name, or in all of a node's namespaces. Where
// is a pod, as Status.Find knows it, node/NAME, outside, or router. An error that is an *exec.ExitError is the
// command's own.
func Exec(ctx context.Context, name, where string, args []string) error {
	s, err := ReadStatus(ctx, name)
	if err != nil {
		return err
	}
	argv, err := s.enter(where)
	if err != nil {
		return err
	}
	argv = append(argv, args...)
	// Ctrl-C is for the command, which is in the same terminal; this program waits for what it makes of it.
	signal.Ignore(os.Interrupt)
	defer signal.Reset(os.Interrupt)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// So that weftctl is found on a node wherever it was called from.
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":"+filepath.Dir(self))
	// The command ends with this program; the kernel means the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd.Run()
}

// Kubectl runs kubectl against the lab's API server. An error that is an *exec.ExitError is kubectl's own.
func Kubectl(ctx context.Context, name string, args []string) error {
	s, err := ReadStatus(ctx, name)
	if err != nil {
		return err
	}
	if len(s.Nodes) == 0 {
		return fmt.Errorf("lab %q has no node yet", name)
	}
	// The server is in the nodes' network only.
	return Exec(ctx, name, "node/"+s.Nodes[0].Name, append([]string{"kubectl", "--kubeconfig=" + kubeconfig, "--cache-dir=" + agentDir + "/kubectl"}, args...))
}

// enter is the command prefix that leads to a pod or a node.
func (s Status) enter(where string) ([]string, error) {
	if node, ok := strings.CutPrefix(where, "node/"); ok {
		for _, n := range s.Nodes {
			if n.Name == node {
				return n.Sandbox.Enter()
			}
		}
		return nil, fmt.Errorf("lab %q has no node %q", s.Name, node)
	}
	switch where {
	case outsideName:
		return s.Outside.Sandbox.Enter()
	case routerName:
		return s.Router.Enter()
	}
	pod, err := s.Find(where)
	if err != nil {
		return nil, err
	}
	group, err := groupOf(s.Name)
	if err != nil {
		return nil, err
	}
	enter, err := cgroupOf(group).Enter()
	if err != nil {
		return nil, err
	}
	// /sys shows the network devices of the namespace that mounted it.
	const setup = `echo "$1" >/proc/sys/kernel/hostname; mount -t sysfs sysfs /sys; shift; exec "$@"`
	return append(enter, "nsenter", "--net="+pod.NetNS, "--", "unshare", "--mount", "--uts", "--propagation", "private",
		"--",
		"sh", "-ec", setup, "sh", pod.Name), nil
}

// cgroupOf is the cgroup of what belongs to no node: the daemon, and commands in pods. The lab's own has the nodes'
// below it, and may have no processes.
func cgroupOf(group sandbox.Group) sandbox.Cgroup { return group.Cgroup().Child("lab") }
