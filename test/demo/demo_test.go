package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

func flow(table string, id uint8, owner, match, actions string, packets uint64) report.Flow {
	return report.Flow{Table: table, TableID: id, Priority: 100, Match: match, Actions: actions, Owner: owner,
		Stats: openflow.Stats{Packets: packets}}
}

func TestOnlyFlowsThatGrewAreShown(t *testing.T) {
	const toTunnel = "set_field:0a:57:65:66:74:01->eth_src,set_field:0a:57:65:66:74:01->eth_dst,set_field:172.30.0.12->tun_dst,set_field:weft-geneve->reg1,goto_table:Output"
	before := []report.Flow{
		flow("Classifier", 0, "pod/demo/client", "in_port=client-1", "set_field:0x1/0xf->reg0,goto_table:ARPND", 5),
		flow("Classifier", 0, "pipeline", "in_port=weft0", "set_field:0x3/0xf->reg0,goto_table:ARPND", 7),
		flow("SpoofGuard", 10, "pod/demo/gone", "in_port=gone-1", "drop", 900),
		flow("Forwarding", 60, "node/node2", "ip,nw_dst=10.244.1.0/24", toTunnel, 0),
	}
	after := []report.Flow{
		flow("Classifier", 0, "pod/demo/client", "in_port=client-1", "set_field:0x1/0xf->reg0,goto_table:ARPND", 15),
		// fewer than were sent
		flow("Classifier", 0, "pipeline", "in_port=weft0", "set_field:0x3/0xf->reg0,goto_table:ARPND", 9),
		flow("SpoofGuard", 10, "pod/demo/gone", "in_port=gone-1", "drop", 20), // recreated
		flow("Forwarding", 60, "node/node2", "ip,nw_dst=10.244.1.0/24", toTunnel, 10),
		flow("Output", 90, "pipeline", "", "output:NXM_NX_REG1[]", 20), // a flow that was not there before
	}
	hits := grown(before, after, 10)
	want := `TABLE       PACKETS  BECAUSE OF       MATCH                    THEN
Classifier  +10      pod/demo/client  in_port=client-1         → ARPND
Forwarding  +10      node/node2       ip,nw_dst=10.244.1.0/24  to node 172.30.0.12 by port weft-geneve → Output
Output      +20      pipeline         (any)                    output
`
	if diff := cmp.Diff(want, render(hits)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if n := packetsOf(hits, "Forwarding", "node/node2"); n != 10 {
		t.Errorf("node/node2 got %d packets in Forwarding, want 10", n)
	}
	if n := packetsOf(hits, "Forwarding", "node/node3"); n != 0 {
		t.Errorf("node/node3 got %d packets", n)
	}
}

func TestThen(t *testing.T) {
	for actions, want := range map[string]string{
		"drop": "drop",
		"set_field:fd30::12->tun_ipv6_dst,set_field:weft-vxlan->reg1,goto_table:Output": "to node fd30::12 by port " +
			"weft-vxlan → Output",
		"ct(commit,zone=1),IN_PORT": "ct IN_PORT",
	} {
		if got := then(actions); got != want {
			t.Errorf("then(%q) = %q, want %q", actions, got, want)
		}
	}
}

func pod(name, node string, ready bool) corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func TestFind(t *testing.T) {
	waiting := pod("web-3", "n2", false)
	waiting.Status.ContainerStatuses = []corev1.ContainerStatus{
		{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}}
	ending := pod("web-0", "n2", true)
	ending.DeletionTimestamp = &metav1.Time{}
	for _, tc := range []struct {
		name    string
		pods    []corev1.Pod
		remote  string
		problem string
	}{
		{"all ready", []corev1.Pod{pod(client, "n1", true), pod("web-1", "n1", true), pod("web-2", "n2", true),
			pod("web-3", "n1", true)}, "web-2", ""},
		{"one waits", []corev1.Pod{pod(client, "n1", true), pod("web-1", "n1", true), pod("web-2", "n2", true), waiting}, "",
			"3 of 4 pods ready, web-3: ErrImagePull"},
		{"one ends", []corev1.Pod{pod(client, "n1", true), pod("web-1", "n1", true), pod("web-2", "n2", true), ending}, "",
			"3 of 4 pods ready"},
		{"one node", []corev1.Pod{pod(client, "n1", true), pod("web-1", "n1", true), pod("web-2", "n1", true),
			pod("web-3", "n1", true)}, "", "two nodes"},
		{"nothing yet", nil, "", "0 of 4"},
	} {
		a, err := find(tc.pods)
		if tc.problem == "" && (err != nil || a.remote.Name != tc.remote) {
			t.Errorf("%s: remote %q, error %v", tc.name, a.remote.Name, err)
		}
		if tc.problem != "" && (err == nil || !strings.Contains(err.Error(), tc.problem)) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.problem)
		}
	}
}

func TestTyped(t *testing.T) {
	got := typed([]string{"-n", "demo", "exec", "client", "--", "curl", "http://[fd44::2]:8080/", "it's"})
	if want := `kubectl -n demo exec client -- curl 'http://[fd44::2]:8080/' 'it'\''s'`; got != want {
		t.Errorf("typed = %s, want %s", got, want)
	}
}

func TestACharacterDeviceIsNotATerminal(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if newPrinter(null).terminal {
		t.Errorf("%s passes for a terminal", os.DevNull)
	}
}

func TestColoursAreForTerminals(t *testing.T) {
	var b bytes.Buffer
	p := &printer{out: &b}
	show := func() {
		p.chapter("Title")
		p.command("kubectl get pods")
		p.result("a  b\nc\n")
		p.waiting("3 of 4")
		p.done("ready")
	}
	show()
	if want := "\n1. Title\n  $ kubectl get pods\n    a  b\n    c\n  ✓ ready\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	p.terminal = true
	show()
	if !strings.Contains(b.String(), "\x1b[1m2. Title\x1b[0m") || !strings.Contains(b.String(), "… 3 of 4") {
		t.Errorf("no colours on a terminal: %q", b.String())
	}
}
