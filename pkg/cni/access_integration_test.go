//go:build integration

package cni_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-cni/weft/pkg/cni"
)

func TestOnlyRootMayAsk(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	// Open the directory that the server restricted, so that only its check of the caller is left.
	for _, path := range []string{n.dir, n.dir + "/s", n.socket, binDir, binDir + "/weft-cni"} {
		check(t, os.Chmod(path, 0o777))
	}
	cmd := n.command("STATUS",
		fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": %q}`, n.socket))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), `"code": 50`) {
		t.Errorf("a user that is not root was answered: %v, %s", err, out)
	}
}

// TestAddWaitsForTheSwitch: an ADD is not rejected while ovs-vswitchd restarts, because it may be back at any moment.
func TestAddWaitsForTheSwitch(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	n.set(func(s *cni.Settings) { s.Degraded = "the switch is away" })
	list := n.conf("1.1.0", "")
	p := n.pod("waiting")
	n.mustAdd(list, p)
	n.mustDel(list, p)
}
