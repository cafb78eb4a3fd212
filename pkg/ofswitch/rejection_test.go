package ofswitch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/openflow"
)

// What ovs-ofctl 3.1 prints when a bundle or a request fails, and whether the content is at fault.
var failures = []struct {
	name, stderr string
	rejected     bool
}{
	{"no such group",
		"Error OFPBAC_BAD_OUT_GROUP for: OFPT_FLOW_MOD (OF1.5) (xid=0x2): ADD table:60 priority=6,ip actions=group:77\n" +
			"Error OFPBFC_MSG_FAILED for: OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x5):\n" +
			" bundle_id=0 type=COMMIT_REQUEST flags=atomic ordered\n" +
			"ovs-ofctl: talking to unix:/run/o/weft.mgmt (Protocol error)\n", true},
	{"a line that cannot be parsed", "ovs-ofctl: -:1: unknown action no_such\n", true},
	{"a full table", "Error OFPFMFC_TABLE_FULL for: OFPT_FLOW_MOD (OF1.5) (xid=0x3): ADD table:60 arp actions=drop\n",
		true},
	{"no more groups", "Error OFPGMFC_OUT_OF_GROUPS for: OFPT_GROUP_MOD (OF1.5) (xid=0x2):\n", true},
	{"a bad match", "Error OFPBMC_BAD_PREREQ for: OFPT_FLOW_MOD (OF1.5) (xid=0x2):\n", true},
	{"a bad match of an extension", "Error NXBMC_CT_DATAPATH_SUPPORT for: OFPT_FLOW_MOD (OF1.5) (xid=0x2):\n", true},
	{"a bad instruction", "Error OFPBIC_BAD_TABLE_ID for: OFPT_FLOW_MOD (OF1.5) (xid=0x2):\n", true},
	{"a bad property of a group", "Error OFPBPC_BAD_VALUE for: OFPT_GROUP_MOD (OF1.5) (xid=0x2):\n", true},
	{"no more meters",
		"OFPT_ERROR (OF1.5) (xid=0x2): OFPMMFC_OUT_OF_METERS\nOFPT_METER_MOD (OF1.5) (xid=0x2): ADD meter=1\n", true},

	{"a busy switch",
		"Error OFPBFC_TIMEOUT for: OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x2):\n" +
			" bundle_id=0 type=COMMIT_REQUEST flags=atomic ordered\n", false},
	{"a bundle that failed for no reason", "Error OFPBFC_MSG_FAILED for: OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x5):\n", false},
	{"another controller", "Error OFPBRC_IS_SLAVE for: OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x2):\n", false},
	{"no permission", "Error OFPBRC_EPERM for: OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x2):\n", false},
	{"a bad role", "OFPT_ERROR (OF1.5) (xid=0x2): OFPRRFC_STALE\n", false},
	{"no switch", "ovs-ofctl: unix:/run/o/weft.mgmt: failed to connect to socket (No such file or directory)\n", false},
	{"a switch that went away", "ovs-ofctl: talking to unix:/run/o/weft.mgmt (Connection reset by peer)\n", false},
	{"killed", "", false},
}

func TestRejection(t *testing.T) {
	exit := errors.New("exit status 1")
	for _, test := range failures {
		err := failure("bundle", exit, test.stderr)
		var rejected *RejectedError
		if errors.As(err, &rejected) != test.rejected || err == nil {
			t.Errorf("%s: %v; rejected is %t", test.name, err, !test.rejected)
		}
		if !test.rejected && !errors.Is(err, exit) {
			t.Errorf("%s: %v does not say how the program ended", test.name, err)
		}
	}
}

// TestMetersOfASwitchThatWentAway: a meter that cannot be made is the fault of those who need it only when the switch
// says so.
func TestMetersOfASwitchThatWentAway(t *testing.T) {
	for _, test := range failures {
		dir := t.TempDir()
		// An ovs-ofctl whose switch has no meter, and takes none.
		program := "#!/bin/sh\ncase \"$*\" in *dump-meters*) exit 0;; esac\ncat >&2 <<'END'\n" + test.stderr + "END\nexit 1\n"
		if err := os.WriteFile(filepath.Join(dir, "ovs-ofctl"), []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		err := New(dir, dir, "none", Kernel).SetMeters(t.Context(), []openflow.Meter{{ID: 7, Rate: 1}})
		var rejected *RejectedError
		if errors.As(err, &rejected) != test.rejected || err == nil {
			t.Errorf("%s: %v; rejected is %t", test.name, err, !test.rejected)
		}
		if err != nil && !strings.Contains(err.Error(), "meter 7") {
			t.Errorf("%s: %v does not name the meter", test.name, err)
		}
	}
}
