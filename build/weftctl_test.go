package build

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// agentOnly are the packages that only the agent needs: they work on Linux alone, or make up most of the
// agent. One line per package or parent.
var agentOnly = regexp.MustCompile(`(?m)^(` + strings.Join([]string{
	`github\.com/vishvananda/(netlink|netns)`,
	`github\.com/containernetworking/.*`,
	`github\.com/ovn-org/libovsdb`,
	`github\.com/prometheus/.*`,
	`sigs\.k8s\.io/knftables`,
	`k8s\.io/.*`,
	`github\.com/weft-cni/weft/pkg/(agent|capture/tap|cni|config|healthcheck|host|kube|netthread|ofswitch|ovsdb|programmer|state)`,
	`github\.com/weft-cni/weft/test`,
}, "|") + `)(/.*)?$`)

// TestWeftctlImportsNoAgent: weftctl and the reports import nothing of the agent, on no system.
func TestWeftctlImportsNoAgent(t *testing.T) {
	for _, system := range []string{"linux", "darwin", "windows"} {
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "../cmd/weftctl")
		cmd.Env = append(cmd.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: list what weftctl imports: %v", system, err)
		}
		if !strings.Contains(string(out), "github.com/weft-cni/weft/pkg/report\n") {
			t.Fatalf("%s: weftctl does not import pkg/report", system)
		}
		for _, line := range agentOnly.FindAllString(string(out), -1) {
			t.Errorf("%s: weftctl imports %s, directly or through another package", system, line)
		}
	}
}
