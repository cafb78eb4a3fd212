package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// serve answers weftctl on a socket as an agent would, and gives the socket.
func serve(t *testing.T, answers map[string]any) string {
	t.Helper()
	return onSocket(t, func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.String()]
		if !ok {
			http.Error(w, "the agent has not programmed the switch yet; see weftctl status", http.StatusServiceUnavailable)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
}

// onSocket serves HTTP on a socket until the test ends.
func onSocket(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

func weftctl(socket string, args ...string) (string, error) {
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetArgs(append([]string{"--socket", socket}, args...))
	err := root.Execute()
	return out.String(), err
}

// wantCode fails unless a command ends with this exit code.
func wantCode(t *testing.T, err error, want int) {
	t.Helper()
	if got := cli.Finish("weftctl", err, cli.CannotAsk, io.Discard); got != want {
		t.Fatalf("exit code %d (%v), want %d", got, err, want)
	}
}

// wantText compares line by line; tabwriter leaves blanks at the ends of lines, which are invisible.
func wantText(t *testing.T, got, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), strings.Join(lines, "\n")+"\n"); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func cidrs(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func exampleReport() report.Status {
	return report.Status{
		Node: "node1", Version: "v1", Ready: true, Tunnel: "geneve", Datapath: "system", MTU: 1450, Underlay: "eth0",
		Addrs: addrs("172.30.0.11", "fd30::11"), PodCIDRs: cidrs("10.244.0.0/24", "fd44::/64"),
		Objects: report.ObjectCounts{Services: 12, Policies: 3},
		API:     []report.Feed{{Resource: "nodes", AgeSeconds: 3}, {Resource: "pods", AgeSeconds: 41.3}},
		Flows:   report.Switch{Progress: report.Progress{Programmed: 8, Desired: 8, Flows: 61, Bundles: 7}},
		Nodes: []report.Node{{Name: "node2", Tunnel: addrs("172.30.0.12")[0], PodCIDRs: cidrs("10.244.1.0/24",
			"fd44:0:0:1::/64")}},
		Pods:  []report.Pod{{Pod: "shop/web", IPs: addrs("10.244.0.2", "fd44::2"), Port: "web-123456", OFPort: 16}},
		Drops: []report.Drop{{Reason: flows.SpoofedIP, Stats: openflow.Stats{Packets: 3, Bytes: 294}}},
	}
}

func TestStatus(t *testing.T) {
	out, err := weftctl(serve(t, map[string]any{"/v1/status": exampleReport()}), "status")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, `
Node       node1
Agent      v1, ready
Addresses  172.30.0.11,fd30::11
Pod CIDRs  10.244.0.0/24,fd44::/64
Tunnel     geneve over eth0, system datapath, pod MTU 1450
Flows      61, all programmed (revision 8), 7 bundles, 0 repairs
Services   12
Policies   3 about pods of this node
API news   of all resources within 41s (pods)

POD       IPS                 PORT        OFPORT  STATE
shop/web  10.244.0.2,fd44::2  web-123456  16      programmed

NODE   TUNNEL TO    POD CIDRS                      STATE
node2  172.30.0.12  10.244.1.0/24,fd44:0:0:1::/64  known

DROPPED BECAUSE  PACKETS  BYTES
spoofed-ip       3        294
`)
}

// Everything that is wrong is said, each time in the same order.
func TestStatusShowsProblems(t *testing.T) {
	r := exampleReport()
	r.Flows.Programmed = 6
	r.Objects.ServicesWithProblems, r.Objects.PoliciesWithErrors = 2, 1
	r.Flows.Quarantined = map[string]string{"policy/shop/db": "no such port", "pod/shop/web": "refused",
		"node/node2": "refused too", "pod/shop/api": "and this"}
	r.Flows.Conflicts = []string{"10.244.1.0/24 is claimed twice"}
	r.Flows.Error = "connection refused"
	r.Problems = []string{"bridge: no answer"}
	r.API[1].Error = "pods is forbidden"
	r.Nodes[0].Unreachable = "node node2 has no podCIDRs"
	r.Pods[0].Problem = "refused"
	r.Restart = []report.Change{{Key: "datapath", Old: "system", New: "netdev"}}
	r.Drops = nil
	socket := serve(t, map[string]any{"/v1/status": r})
	for range 5 {
		out, err := weftctl(socket, "status")
		wantCode(t, err, cli.Problem)
		wantText(t, out, `
Node       node1
Agent      v1, ready
Addresses  172.30.0.11,fd30::11
Pod CIDRs  10.244.0.0/24,fd44::/64
Tunnel     geneve over eth0, system datapath, pod MTU 1450
Flows      61, only revision 6 of 8 programmed, 7 bundles, 0 repairs
Services   12, 2 with problems
Policies   3 about pods of this node, 1 with errors
API news   of all resources within 41s (pods), failing: pods
Problem    bridge: no answer
Problem    switch: connection refused
Problem    node/node2 is left out: refused too
Problem    pod/shop/api is left out: and this
Problem    pod/shop/web is left out: refused
Problem    policy/shop/db isolates its pods and allows nothing: no such port
Problem    10.244.1.0/24 is claimed twice
Restart    datapath is system, configured is netdev: kubectl -n weft-system rollout restart daemonset/weft-agent

POD       IPS                 PORT        OFPORT  STATE
shop/web  10.244.0.2,fd44::2  web-123456  16      refused

NODE   TUNNEL TO    POD CIDRS                      STATE
node2  172.30.0.12  10.244.1.0/24,fd44:0:0:1::/64  node node2 has no podCIDRs
`)
	}
}

// An agent that waits for Open vSwitch knows nothing but that.
func TestStatusOfAnAgentThatStarts(t *testing.T) {
	why := "waiting for OVSDB: dial unix /run/openvswitch/db.sock: no such file or directory"
	r := report.Status{Node: "node1", Version: "v1", NotReady: why, Tunnel: "geneve", Datapath: "system"}
	out, err := weftctl(serve(t, map[string]any{"/v1/status": r}), "status")
	wantCode(t, err, cli.Problem)
	wantText(t, out, `
Node       node1
Agent      v1, not ready: `+why+`
Addresses  -
Pod CIDRs  -
Tunnel     geneve, system datapath, underlay and MTU not known yet
Flows      none yet
`)
}

func exampleFlows() []report.Flow {
	return []report.Flow{
		{Table: "Classifier", Priority: 100, Match: "in_port=web-123456", Actions: "set_field:0x1/0xf->reg0,goto_table:ARPND",
			Owner: "pod/shop/web", Stats: openflow.Stats{Packets: 12}},
		{Table: "SpoofGuard", Priority: 80, Match: "ip,in_port=web-123456", Actions: "drop", Owner: "pod/shop/web",
			Reason: flows.SpoofedIP},
		{Table: "Forwarding", TableID: 60, Priority: 0, Actions: "drop", Owner: "pipeline", Reason: flows.NoRoute,
			Stats: openflow.Stats{Packets: 1}},
	}
}

func TestFlows(t *testing.T) {
	socket := serve(t, map[string]any{"/v1/flows": exampleFlows(), "/v1/flows?object=shop%2Fweb": exampleFlows()[:2],
		"/v1/flows?object=shop%2Fnone": []report.Flow{}})
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"flows"}, `
TABLE       PRIO  PACKETS  OWNER         MATCH                  ACTIONS
Classifier  100   12       pod/shop/web  in_port=web-123456     set_field:0x1/0xf->reg0,goto_table:ARPND
SpoofGuard  80    0        pod/shop/web  ip,in_port=web-123456  drop (spoofed-ip)
Forwarding  0     1        pipeline      (any)                  drop (no-route)
`},
		{[]string{"flows", "--used"}, `
TABLE       PRIO  PACKETS  OWNER         MATCH               ACTIONS
Classifier  100   12       pod/shop/web  in_port=web-123456  set_field:0x1/0xf->reg0,goto_table:ARPND
Forwarding  0     1        pipeline      (any)               drop (no-route)
`},
		{[]string{"flows", "shop/web"}, `
TABLE       PRIO  PACKETS  OWNER         MATCH                  ACTIONS
Classifier  100   12       pod/shop/web  in_port=web-123456     set_field:0x1/0xf->reg0,goto_table:ARPND
SpoofGuard  80    0        pod/shop/web  ip,in_port=web-123456  drop (spoofed-ip)
`},
	} {
		out, err := weftctl(socket, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, out, tc.want)
	}
	if _, err := weftctl(socket, "flows", "shop/none"); err == nil || !strings.Contains(err.Error(), "shop/none") {
		t.Errorf("an object without flows gave %v", err)
	}
}

func TestJSONIsWhatTheAgentSays(t *testing.T) {
	socket := serve(t, map[string]any{"/v1/status": exampleReport(), "/v1/flows": exampleFlows()})
	out, err := weftctl(socket, "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var r report.Status
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Node != "node1" || len(r.Pods) != 1 || r.Pods[0].OFPort != 16 {
		t.Errorf("status -o json: %s", out)
	}
	out, err = weftctl(socket, "flows", "-o", "json")
	var list []report.Flow
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 3 || !cmp.Equal(list, exampleFlows()) {
		t.Errorf("flows -o json: %v\n%s", err, out)
	}
}

func TestMistakesAndFailures(t *testing.T) {
	socket := serve(t, nil)
	for _, tc := range []struct {
		socket string
		args   []string
		want   string
	}{
		{socket, []string{"status", "-o", "xml"}, "allowed: table, json, yaml, wide, name"},
		{socket, []string{"flows"}, "has not programmed the switch yet"},
		{filepath.Join(t.TempDir(), "none.sock"), []string{"status"}, "weft-agent has not started on this machine"},
		{socket, []string{"flows", "a", "b"}, "at most 1"},
	} {
		out, err := weftctl(tc.socket, tc.args...)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("weftctl %v: %v, want %q; printed %q", tc.args, err, tc.want, out)
		}
		wantCode(t, err, cli.CannotAsk)
	}
}
