package lab

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// needed are the programs that a lab runs, and the Debian packages that bring them.
var needed = []struct{ program, debian string }{
	{"ovs-vswitchd", "openvswitch-switch"},
	{"ovsdb-server", "openvswitch-switch"},
	{"ovsdb-tool", "openvswitch-common"},
	{"ovs-vsctl", "openvswitch-switch"},
	{"ip", "iproute2"},
	{"ethtool", "ethtool"},
	{"nft", "nftables"},
	{"nsenter", "util-linux"},
	{"unshare", "util-linux"},
	{"mount", "mount"},
}

func missingPrograms() error {
	var missing []string
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil && !slices.Contains(missing, n.debian) {
			missing = append(missing, n.debian)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("programs are missing: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	return nil
}
