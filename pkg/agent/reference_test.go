package agent

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/service"
)

const policyKinds = "NetworkPolicy, ClusterNetworkPolicy"

// events are the Events that agents write. All are warnings.
var events = []struct{ reason, objects, meaning, remedy string }{
	{eventPolicyAllowsNothing, policyKinds, "The policy is invalid, over budget or rejected by the switch. The pods of " +
		"a NetworkPolicy are isolated, and its rules allow nothing. Of a ClusterNetworkPolicy, the rules at fault accept " +
		"nothing, and deny everything if they are to deny or to pass.", "Correct the field that the message names."},
	{eventPolicyIncomplete, policyKinds, "Some flows have no room for more clauses, so that the policy's rules allow " +
		"less than they say.", "Merge policies and rules of the namespace that name the same peers and ports."},
	{eventPodsClosed, policyKinds, "The switch rejected the flows that isolate pods for this policy, so that these " +
		"pods are closed.", "`weftctl status` on the node of the message has the switch's reason."},
	{eventPartIgnored, "Service, " + policyKinds + ", Pod, Node", "A field or an annotation is not used; the rest of " +
		"the object is.", "Correct the field that the message names."},
	{eventAddressTaken, "Service", "Another Service has an external address and port that this one names.",
		"Give one of the two another address or port."},
	{eventOverBudget, "Service", "The Service would have more flows than its namespace's share of the node's budget.",
		"Split the Service, or use fewer endpoints, ports or source ranges."},
	{eventHealthCheckFailed, "Service", "The node cannot answer load balancers at the Service's healthCheckNodePort.",
		"Stop the program that has the port."},
	{eventFlowsRefused, "Pod, Service, Node", "The object is quarantined: the switch rejected its flows, and none of " +
		"them are installed.", "`weftctl status` on the node has the switch's reason; the object is tried again."},
}

// annotations are those that users write.
var annotations = []struct{ name, objects, values, meaning, page string }{
	{service.BalanceAnnotation, "Service", "`connection` (default), `source`", "What chooses the endpoint: the " +
		"connection's addresses and ports, or the client's address alone.", "services.md"},
	{service.WeightsAnnotation, "Service", "`POD=WEIGHT`, separated by commas; weights from 1 to 100", "How many " +
		"connections a pod gets beside the others, which have the weight 1.", "services.md"},
	{kube.LogAnnotation, policyKinds + ", Namespace", "`true`", "Log a sample of the packets that the policy decides; " +
		"on a namespace, for all of its NetworkPolicies.", "policies.md"},
	{kube.StagedAnnotation, policyKinds, "`true`, `false`", "A dry run: the policy has no effect; what it would decide " +
		"is counted and logged.", "policies.md"},
}

// agentAnnotations are those that agents write at their own Node objects, and that the others read.
var agentAnnotations = []struct{ name, values, meaning, page string }{
	{kube.UnderlayAnnotation, "`ADDRESS/LENGTH@MAC`, separated by commas", "The links that carry the node's " +
		"InternalIPs. Nodes that publish the same subnet are neighbors.", "transports.md"},
	{kube.ReceivesAnnotation, "`direct`, `wireguard`, or both, separated by a comma", "The forms besides tunnels in which the " +
		"node accepts packets of other nodes' pods.", "transports.md"},
	{kube.WireGuardAnnotation, "`KEY@PORT`", "The public key and UDP port of the node's WireGuard device.", "transports.md"},
}

// TestEventsPage: docs/events.md has the Events that the agent's code writes.
func TestEventsPage(t *testing.T) {
	var page strings.Builder
	page.WriteString("<!-- Made from pkg/agent by: go test ./pkg/agent -run TestEventsPage -update -->\n# Events\n\n" +
		"Agents write these Events, all of them warnings, about the object at fault: `kubectl describe` shows them, and\n" +
		"`kubectl get events -A --field-selector source=weft-agent` lists them. Of several agents that see the same fault\n" +
		"of an object, one writes.\n\n| Reason | Objects | Meaning | What to do |\n|---|---|---|---|\n")
	known := map[string]bool{}
	for _, e := range events {
		known[e.reason] = true
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", e.reason, e.objects, e.meaning, e.remedy)
	}
	golden.File(t, "../../docs/events.md", page.String())
	source, err := os.ReadFile("events.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`event\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		if !known[m[1]] {
			t.Errorf("the Event %s is not in the table of this test", m[1])
		}
	}
	for file, text := range sourceFiles(t, ".") {
		if m := regexp.MustCompile(`events\.Warn(If)?\(.*"[A-Z]\w+",`).FindString(text); m != "" {
			t.Errorf("%s: the reason of an Event belongs to events.go: %s", file, m)
		}
	}
}

// TestAnnotationsPage: docs/annotations.md has the annotations that the product's code names.
func TestAnnotationsPage(t *testing.T) {
	var page strings.Builder
	page.WriteString("<!-- Made from pkg/agent by: go test ./pkg/agent -run TestAnnotationsPage -update -->\n" +
		"# Annotations\n\n" +
		"What users can write into `metadata.annotations`. An invalid value is named in an Event ([events.md](events.md)) " +
		"and\n" +
		"has no effect.\n\n| Annotation | Objects | Values | Meaning |\n|---|---|---|---|\n")
	var known []string
	for _, a := range annotations {
		known = append(known, a.name)
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s [%s](%s) |\n", a.name, a.objects, a.values, a.meaning, a.page, a.page)
	}
	page.WriteString("\nWhat each agent writes at its own Node object, which the admission policy of the manifest leaves to it alone:\n\n" +
		"| Annotation | Values | Meaning |\n|---|---|---|\n")
	for _, a := range agentAnnotations {
		known = append(known, a.name)
		fmt.Fprintf(&page, "| `%s` | %s | %s [%s](%s) |\n", a.name, a.values, a.meaning, a.page, a.page)
	}
	golden.File(t, "../../docs/annotations.md", page.String())
	named := map[string]bool{}
	for _, text := range sourceFiles(t, "..") {
		for _, m := range regexp.MustCompile(`"(weft\.dev/[^"]+)"`).FindAllStringSubmatch(text, -1) {
			named[m[1]] = true
		}
	}
	slices.Sort(known)
	if d := cmp.Diff(known, slices.Sorted(maps.Keys(named))); d != "" {
		t.Errorf("annotations (-table +code):\n%s", d)
	}
}

// sourceFiles are the product's Go files below a directory, by name.
func sourceFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files below %s, %v", len(files), dir, err)
	}
	return files
}
