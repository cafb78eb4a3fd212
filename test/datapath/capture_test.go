//go:build integration

package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const capturedPods = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, image: x, ports: [{containerPort: 8080, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node1, containers: [{name: c, image: x, ports: [{containerPort: 1}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, protocol: UDP}]
`

// seen collects the packets of captures with their names.
type seen struct {
	names capture.Names
	ports []capture.Port
	lines []string
	end   capture.End
}

func (s *seen) record(r capture.Record) {
	switch {
	case r.Ports != nil:
		s.ports = r.Ports
	case r.Name != nil:
		s.names.Set(*r.Name)
	case r.Packet != nil:
		port := s.ports[r.Packet.Port]
		h := capture.Parse(r.Packet.Data, port.Tunnel)
		source, destination := h.Ends(s.names.Of)
		direction := map[bool]string{true: "to ", false: "from "}[r.Packet.To]
		s.lines = append(s.lines, direction+port.Name+": "+source+" > "+destination+" "+h.Info(s.names.Of))
	case r.End != nil:
		s.end = *r.End
	}
}

// TestCapture: packets of a connection from a pod through a Service to a pod of another node are seen at the client's
// port before the translation, in the tunnel and at the server's port after it, with the names of both, in both
// families; nothing else is.
func TestCapture(t *testing.T) {
	l := labtest.Up(t, "capt", "-f", labtest.Write(t, map[string]string{"all.yaml": capturedPods}), "--nodes=2", "--ip-family=dual")
	status := l.Status()
	client := openClient(t, status, "shop/client", "node1", "pod")
	agents := map[string]api.Client{}
	for _, n := range status.Nodes {
		agents[n.Name] = agentOf(n.Files)
	}
	// during runs captures until each has seen a number of packets, while send runs, which begins when all have begun.
	during := func(requests map[string]capture.Request, send func()) map[string]*seen {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience(60*time.Second))
		defer cancel()
		group, ctx := errgroup.WithContext(ctx)
		begun := make(chan struct{}, len(requests))
		all := map[string]*seen{}
		for name, request := range requests {
			node, _, _ := strings.Cut(name, " ")
			s := &seen{names: capture.Names{}}
			all[name] = s
			group.Go(func() error {
				err := agents[node].Capture(ctx, request, func(r capture.Record) error {
					s.record(r)
					if r.Ports != nil {
						begun <- struct{}{}
					}
					return nil
				})
				if err != nil {
					err = fmt.Errorf("%s: %w; seen %q", name, err, s.lines)
				}
				return err
			})
		}
		for range requests {
			select {
			case <-begun:
			case <-ctx.Done():
				t.Fatal(group.Wait())
			}
		}
		send()
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		return all
	}
	dial := func(to netip.AddrPort) (conn net.Conn, port uint16) {
		t.Helper()
		if err := client.ns.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(t.Context(), "udp", to.String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		local, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn, local.Port()
	}
	// say sends a datagram, once, and waits for the answer.
	say := func(conn net.Conn) error {
		answer := make([]byte, 1000)
		return errors.Join(conn.SetDeadline(time.Now().Add(testenv.Patience(10*time.Second))), second(conn.Write([]byte("hello"))),
			second(conn.Read(answer)))
	}
	ask := func(to netip.AddrPort) {
		t.Helper()
		testenv.Eventually(t, testenv.Patience(60*time.Second), func() error {
			conn, _ := dial(to)
			return say(conn)
		})
	}
	var service []netip.Addr
	for _, s := range status.Services {
		if s.Namespace != "shop" || s.Name != "web" {
			continue
		}
		for _, text := range s.IPs {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			service = append(service, addr)
		}
	}
	if len(service) != 2 {
		t.Fatalf("the Service has the addresses %v", service)
	}
	for _, addr := range service {
		ask(netip.AddrPortFrom(addr, 80)) // the nodes have found each other and the pods by now
		conn, port := dial(netip.AddrPortFrom(addr, 80))
		// The port is this conversation's alone: a late answer to another one is not seen.
		request := func(kind, at, peer string) capture.Request {
			return capture.Request{Kind: kind, At: at, Peer: peer, PeerKind: "pod", Protocol: capture.UDP, Port: port,
				Packets: 2, SnapLen: capture.MinSnapLen}
		}
		own := request("pod", "shop/client", "")
		own.PeerKind = ""
		svc := request("service", "shop/web", "shop/client")
		got := during(map[string]capture.Request{
			"node1 client": own, "node1 service": svc, "node2 service": svc, "node2 web": request("pod", "shop/web", "shop/client"),
			"node1 tunnel": request("", capture.AtTunnel, "shop/web"), "node2 tunnel": request("", capture.AtTunnel, "shop/client"),
		}, func() {
			if err := say(conn); err != nil {
				t.Error(err)
			}
		})
		there := fmt.Sprintf("shop/client:%d > shop/web:8080 UDP, 5 bytes", port)
		back := fmt.Sprintf("shop/web:8080 > shop/client:%d UDP, ", port)
		before := fmt.Sprintf("shop/client:%d > service/shop/web:80 UDP, 5 bytes", port)
		answered := fmt.Sprintf("service/shop/web:80 > shop/client:%d UDP, ", port)
		in := func(from, to string) string { return " in Geneve from node/" + from + " to node/" + to }
		for name, want := range map[string][2]string{
			"node1 client":  {"from shop/client: " + before, "to shop/client: " + answered},
			"node1 service": {"from shop/client: " + before, "to shop/client: " + answered},
			"node2 service": {"to shop/web: " + there, "from shop/web: " + back},
			"node2 web":     {"to shop/web: " + there, "from shop/web: " + back},
			"node1 tunnel":  {"to tunnel: " + there + in("node1", "node2"), "from tunnel: " + back},
			"node2 tunnel":  {"from tunnel: " + there + in("node1", "node2"), "to tunnel: " + back},
		} {
			s := got[name]
			if len(s.lines) != 2 || s.lines[0] != want[0] || !strings.HasPrefix(s.lines[1], want[1]) ||
				strings.Contains(name, "tunnel") && !strings.HasSuffix(s.lines[1], in("node2", "node1")) {
				t.Errorf("%s at %s:\n%s\nwant\n%s", addr, name, strings.Join(s.lines, "\n"), strings.Join(want[:], "\n"))
			}
			if s.end.Failed || s.end.Reason != "2 packets were captured" {
				t.Errorf("%s ended with %+v", name, s.end)
			}
		}
	}
	t.Run("program", func(t *testing.T) { captureProgram(t, l, service[0], ask) })
	t.Run("bounds", func(t *testing.T) { captureBounds(t, agents["node1"]) })
}

// second is the error of two results.
func second(_ int, err error) error { return err }

// captureProgram: weftctl shows lines, and writes a file with the packets.
func captureProgram(t *testing.T, l *labtest.Lab, service netip.Addr, ask func(netip.AddrPort)) {
	for _, args := range [][]string{{"-o", "json"}, {"-w", "-"}} {
		cmd := l.Exec("node/node1", append([]string{labtest.Program(t, "weftctl"), "capture", "pod/shop/client", "--port=80",
			"-c", "2"}, args...)...)
		var out bytes.Buffer
		errs, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		begun := make([]byte, len("capturing at shop/client"))
		if _, err := errs.Read(begun); err != nil || string(begun) != "capturing at shop/client" {
			t.Fatalf("%q, %v", begun, err)
		}
		ask(netip.AddrPortFrom(service, 80))
		var rest bytes.Buffer
		_, _ = rest.ReadFrom(errs) // until the end
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, &rest)
		}
		if args[0] == "-w" {
			if n := bytes.Count(out.Bytes(), []byte("hello")); n == 0 || !bytes.Contains(out.Bytes(), []byte("service/shop/web")) {
				t.Errorf("%d packets in %q", n, &out)
			}
			continue
		}
		var line struct{ At, SourceName, DestinationName, Info string }
		if err := json.NewDecoder(&out).Decode(&line); err != nil || line.At != "shop/client" ||
			line.DestinationName != "service/shop/web:80" || line.Info != "UDP, 5 bytes" {
			t.Errorf("%v %+v", err, line)
		}
	}
}

// captureBounds: a node runs so many captures and no more, and others again once their clients are gone.
func captureBounds(t *testing.T, agent api.Client) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended, begun := make(chan error), make(chan struct{})
	start := func() {
		go func() {
			ended <- agent.Capture(ctx, capture.Request{At: capture.AtGateway}, func(r capture.Record) error {
				if r.Ports != nil {
					begun <- struct{}{}
				}
				return nil
			})
		}()
		select {
		case <-begun:
		case err := <-ended:
			t.Fatal(err)
		}
	}
	for range 4 {
		start()
	}
	short := capture.Request{Kind: "pod", At: "shop/client", Time: time.Millisecond}
	none := func(capture.Record) error { return nil }
	want := "the agent says: 4 captures run on this node, and there may be no more; end one of them"
	if err := agent.Capture(t.Context(), short, none); err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
	cancel()
	for range 4 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	testenv.Eventually(t, 10*time.Second, func() error { return agent.Capture(t.Context(), short, none) })
	var end capture.End
	if err := agent.Capture(t.Context(), short, func(r capture.Record) error {
		if r.End != nil {
			end = *r.End
		}
		return nil
	}); err != nil || end.Failed || end.Reason != "the time is over: 1ms" {
		t.Errorf("%v, end %+v", err, end)
	}
	for at, want := range map[string]string{
		"shop/web":  "the agent says: pod shop/web is on node node2, not on node1",
		"shop/none": `the agent says: there is no pod "shop/none"`,
	} {
		if err := agent.Capture(t.Context(), capture.Request{Kind: "pod", At: at}, none); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %q", at, err, want)
		}
	}
}
