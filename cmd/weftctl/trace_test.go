package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

// TestTrace: against a cluster, and without one from what --save has written; the exit code says whether the connection
// is established.
func TestTrace(t *testing.T) {
	nodes := walktest.Nodes(t)
	clusterOf(t, map[string]map[string]any{"node1": {"/v1/trace": nodes[0]}, "node2": {"/v1/trace": nodes[1]}})
	file := filepath.Join(t.TempDir(), "nodes.json")
	for _, args := range []string{"trace shop/client shop/web --save " + file,
		"trace -f " + file + " client web -n shop"} {
		out, errs, err := plugin(strings.Fields(args)...)
		if err != nil || errs != "" || !strings.HasPrefix(out, "shop/client (10.244.1.2) to 10.96.0.80:80, TCP\n") ||
			!strings.Contains(out, "\nVerdict: reaches shop/web-1, shop/web-2\n") {
			t.Errorf("%s: %v %q\n%s", args, err, errs, out)
		}
	}
	out, _, err := plugin("trace", "-f", file, "shop/other", "shop/web", "-o", "json")
	wantCode(t, err, cli.Problem)
	var traces []walk.Trace
	if err := json.Unmarshal([]byte(out), &traces); err != nil || len(traces) != 1 || traces[0].Verdict != walk.Dropped ||
		traces[0].Paths[0].Reason != "policy-ingress" {
		t.Errorf("json: %v\n%s", err, out)
	}
	for args, want := range map[string]string{
		"trace shop/client":               "trace needs FROM and TO",
		"trace":                           "trace needs FROM and TO",
		"trace shop/none shop/web":        `there is no pod or node "shop/none"`,
		"trace -f /dev/null a b":          "is not what trace --save writes",
		"trace --node=node9 shop/a b:80":  `there is no node "node9"`,
		"trace shop/client shop/web -o x": "-o x is not known",
	} {
		_, _, err := plugin(strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestExplain: against a cluster, and without one; the exit code says whether the policies allow, deny or are not
// known.
func TestExplain(t *testing.T) {
	nodes := walktest.Nodes(t)
	clusterOf(t, map[string]map[string]any{"node1": {"/v1/trace": nodes[0]}, "node2": {"/v1/trace": nodes[1]}})
	file := filepath.Join(t.TempDir(), "nodes.json")
	if _, _, err := plugin("trace", "--save", file); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"policy explain shop/client shop/web", "policy explain -n shop -f " + file +
		" client web"} {
		out, errs, err := plugin(strings.Fields(args)...)
		if err != nil || errs != "" || !strings.Contains(out, "allow: rule 0 of shop/web") ||
			!strings.HasSuffix(out, "\nVerdict: allowed\n") {
			t.Errorf("%s: %v %q\n%s", args, err, errs, out)
		}
	}
	out, _, err := plugin("policy", "explain", "-f", file, "shop/other", "shop/web", "-o", "json")
	wantCode(t, err, cli.Problem)
	var list []walk.Explanation
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Verdict != walk.Denied {
		t.Errorf("json: %v\n%s", err, out)
	}
	out, _, err = plugin("policy", "explain", "--node=node1", "shop/client", "10.244.2.3:8080")
	wantCode(t, err, cli.CannotAsk)
	if !strings.HasSuffix(out, "\nVerdict: unknown\n") {
		t.Errorf("one node:\n%s", out)
	}
}

// TestTraceLive: packets are sent until one does as the trace says, and never more than three; the captures of both
// nodes are ended, and the exit code says whether the packet was answered.
func TestTraceLive(t *testing.T) {
	for _, tc := range []struct {
		lost, sent, code int
		want             string
	}{
		{0, 1, 0, "Live: agrees with the trace; 1 packet was sent: it reached shop/web-2, which answered with TCP SYN,ACK, back after "},
		{1, 2, 0, "Live: agrees with the trace; 2 packets were sent, and this is about the last: it reached shop/web-2"},
		{9, 3, 1, "Live: DISAGREES with the trace; 3 packets were sent, and this is about the last: it was seen nowhere, not even " +
			"leaving node node1 for the underlay"},
	} {
		nodes := walktest.Nodes(t)
		network := wire{lost: tc.lost, captures: map[string]chan capture.Record{}}
		dir := clusterOf(t, map[string]map[string]any{"node1": {}, "node2": {}})
		for i, name := range []string{"node1", "node2"} {
			socket := filepath.Join(dir, "agent-"+name+".sock")
			if err := errors.Join(os.Remove(socket), os.Symlink(network.agent(t, nodes[i]), socket)); err != nil {
				t.Fatal(err)
			}
		}
		out, errs, err := plugin("trace", "shop/client", "shop/web-2:8080", "--live")
		wantCode(t, err, tc.code)
		if network.sent != tc.sent || errs != "" || !strings.Contains(out, tc.want) {
			t.Errorf("%d packets were sent, want %d; %q\n%s\nwant %s", network.sent, tc.sent, errs, out, tc.want)
		}
		testenv.Eventually(t, 10*time.Second, func() error {
			network.mu.Lock()
			defer network.mu.Unlock()
			if n := len(network.captures); n > 0 {
				return fmt.Errorf("%d captures are left", n)
			}
			return nil
		})
	}
	for args, want := range map[string]string{
		"trace --live --file x shop/a b:80": "it needs FROM and TO, and has no use for --file",
		"trace --live --save x":             "it needs FROM and TO",
		"trace --live node1 shop/web:80":    "--live sends packets from pods, and node1 is none",
	} {
		nodes := walktest.Nodes(t)
		clusterOf(t, map[string]map[string]any{"node1": {"/v1/trace": nodes[0]}, "node2": {"/v1/trace": nodes[1]}})
		_, _, err := plugin(strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// wire is a network that captures show packets of, but for the first ones that are sent, which are lost.
type wire struct {
	lost int

	mu       sync.Mutex
	sent     int
	flows    uint64 // what all flows have counted
	captures map[string]chan capture.Record
}

// agent serves the agent of a node.
func (w *wire) agent(t *testing.T, node walk.Node) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/trace", func(out http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range node.Flows {
			node.Flows[i].Packets = w.flows
		}
		if err := json.NewEncoder(out).Encode(node); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/v1/capture", func(out http.ResponseWriter, r *http.Request) {
		var request capture.Request
		err := json.NewDecoder(r.Body).Decode(&request)
		if err != nil || request.At != capture.AtAll || request.Protocol != capture.TCP {
			t.Errorf("node %s is asked to capture %+v: %v", node.Name, request, err)
		}
		records := make(chan capture.Record, 10)
		records <- capture.Record{Ports: []capture.Port{{Name: "shop/client"}, {Name: "shop/web-2"}, {Name: capture.AtTunnel, Tunnel: true}}}
		w.mu.Lock()
		w.captures[node.Name] = records
		w.mu.Unlock()
		for {
			select {
			case one := <-records:
				if err := errors.Join(json.NewEncoder(out).Encode(one), http.NewResponseController(out).Flush()); err != nil {
					t.Error(err)
				}
			case <-r.Context().Done():
				w.mu.Lock()
				delete(w.captures, node.Name)
				w.mu.Unlock()
				return
			}
		}
	})
	mux.HandleFunc("/v1/send", func(out http.ResponseWriter, r *http.Request) {
		var request api.SendRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || node.Name != "node1" || request.Pod != "shop/client" {
			t.Errorf("node %s is asked to send %+v: %v", node.Name, request, err)
		}
		w.send(request)
		_, _ = out.Write([]byte("true"))
	})
	return onSocket(t, mux.ServeHTTP)
}

// send shows a packet and its answer, wherever they come by.
func (w *wire) send(request api.SendRequest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flows++
	w.sent++
	if w.sent <= w.lost {
		return
	}
	there := openflow.Connection{Protocol: request.Protocol, Source: request.Source, Destination: request.Destination}
	back := openflow.Connection{Protocol: request.Protocol, Source: request.Destination, Destination: request.Source}
	at := time.Unix(1000, 0)
	show := func(node string, port int, to bool, c openflow.Connection, flags byte) {
		frame := c.First(model.MAC{1}, model.MAC{2})
		frame[14+20+13] = flags
		at = at.Add(time.Millisecond)
		packet := capture.Packet{Port: port, To: to, Time: at, Length: len(frame), Data: frame}
		w.captures[node] <- capture.Record{Packet: &packet}
	}
	const client, web, tunnel, syn, synAck = 0, 1, 2, 2, 0x12
	show("node1", tunnel, true, there, syn)
	show("node2", tunnel, false, there, syn)
	show("node2", web, true, there, syn)
	show("node2", web, false, back, synAck)
	show("node2", tunnel, true, back, synAck)
	show("node1", tunnel, false, back, synAck)
	show("node1", client, true, back, synAck)
}
