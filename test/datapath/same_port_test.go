//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	// samePortRounds is how often each of two connections is asked in turn.
	samePortRounds = 20
	// samePortTries is how many pairs of connections are made one after the other.
	samePortTries = 100
)

// twoWays are two addresses that lead to one port of one pod.
type twoWays struct {
	name        string
	from        *client
	first, then netip.AddrPort
}

// ways are, for each client, each endpoint and each family, a Service and its endpoint, in both orders.
func (w *walled) ways(t *testing.T, namespace string, clients []*client, servicePort, endpointPort uint16,
	endpoints ...string) (all []twoWays) {
	t.Helper()
	for _, name := range endpoints {
		vips, pod := w.serviceIPs(t, namespace, name), w.pod(t, namespace+"/"+name)
		for _, v4 := range []bool{true, false} {
			service, direct := netip.AddrPortFrom(of(vips, v4), servicePort), netip.AddrPortFrom(pod.addr(v4), endpointPort)
			for _, from := range clients {
				text := fmt.Sprintf("%s to %s over %s", from.name, pod.name, familyName(v4))
				all = append(all, twoWays{text + ", Service first", from, service, direct}, twoWays{text + ", endpoint first", from,
					direct, service})
			}
		}
	}
	return all
}

// Two connections from one source port, one to a Service and one to its endpoint, in either order, are both answered
// all the time: the endpoint must be able to tell them apart. So are two of which the second begins when the first
// has just been closed, by either side: the endpoint may keep it in TIME_WAIT.
func TestServiceAndEndpointFromOnePort(t *testing.T) {
	const ns = "oneport"
	two := ""
	for name, node := range map[string]string{"near": "node1", "far": "node2"} {
		two += walledPod(ns, name, node, "app: "+name) + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %s}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: %[2]s}
  ports: [{name: tcp, port: 80, targetPort: %[3]d}, {name: udp, port: 80, targetPort: %[3]d, protocol: UDP}, {name: short, port: 81, targetPort: 8080}]
`, ns, name, burstPort)
	}
	w := upWalled(t, "oneport", map[string]string{"f.yaml": two + walledPod(ns, "client", "node1", "app: client")})
	clients := []*client{w.pod(t, ns+"/client"), w.host(t, "node1"), w.host(t, "node2"), w.gateway(t, "node1"),
		w.gateway(t, "node2")}
	for _, name := range []string{"near", "far"} {
		server, err := burst.Serve(w.pod(t, ns+"/"+name).ns, burstPort)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
	}
	long := w.ways(t, ns, clients, 80, burstPort, "near", "far")
	for i, proto := range []podns.Proto{podns.TCP, podns.UDP} {
		t.Run("both at once, "+string(proto), func(t *testing.T) {
			var talks sync.WaitGroup
			for j, way := range long {
				port := 40000 + 1000*i + j // the node's kernel keeps ports from 32768 up
				talks.Go(func() {
					if err := way.both(proto, port); err != nil {
						t.Errorf("%s: %v", way.name, err)
					}
				})
			}
			talks.Wait()
		})
	}
	single := []*client{clients[0], clients[3]}
	short := map[string][]twoWays{"server": w.ways(t, ns, single, 81, 8080, "near", "far"), "client": w.ways(t, ns, single,
		80, burstPort, "near", "far")}
	for i, closer := range []string{"server", "client"} {
		t.Run("one after the other, closed by the "+closer, func(t *testing.T) {
			var workers sync.WaitGroup
			for j, way := range short[closer] {
				base, connect := 42000+5000*i+samePortTries*j, (*client).connectFrom
				if closer == "client" {
					connect = (*client).hangUpFrom
				}
				workers.Go(func() {
					failed := 0
					var last error
					for n := range samePortTries {
						if err := errors.Join(connect(way.from, base+n, way.first), connect(way.from, base+n, way.then)); err != nil {
							failed, last = failed+1, err
						}
						if failed == 3 { // each takes seconds
							break
						}
					}
					if failed > 0 {
						t.Errorf("%s: %d pairs of %d failed at least, the last one: %v", way.name, failed, samePortTries, last)
					}
				})
			}
			workers.Wait()
		})
	}
}

// gateway is a node's own network with the address that the node has towards pods: with it, the node's kernel
// translates neither address nor port of what a process sends to pods and Services.
func (w *walled) gateway(t *testing.T, name string) *client {
	t.Helper()
	c := w.host(t, name)
	c.name += " from its gateway address"
	for _, cidr := range w.node(t, name).PodCIDRs {
		c.bound = append(c.bound, model.GatewayAddr(cidr))
	}
	return c
}

// both opens two connections from one port, and asks each again and again.
func (way twoWays) both(proto podns.Proto, port int) (err error) {
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			err = errors.Join(err, conn.Close())
		}
	}()
	for _, to := range []netip.AddrPort{way.first, way.then} {
		conn, err := way.from.dialFrom(proto, port, to)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", to, err)
		}
		conns = append(conns, conn)
		// The first is asked before there is the second.
		if err := ask(conn); err != nil {
			return fmt.Errorf("the first words to %s: %w", to, err)
		}
	}
	for round := range samePortRounds {
		for _, conn := range conns {
			if err := ask(conn); err != nil {
				return fmt.Errorf("round %d of both, %s: %w", round, conn.RemoteAddr(), err)
			}
		}
	}
	return nil
}

// ask sends a byte and reads the one that answers.
func ask(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience(3 * time.Second))); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// dialFrom connects from a port that other connections have, too.
func (c *client) dialFrom(proto podns.Proto, port int, to netip.AddrPort) (conn net.Conn, err error) {
	var source net.IP
	if len(c.bound) > 0 {
		source = of(c.bound, to.Addr().Is4()).AsSlice()
	}
	dialer := net.Dialer{Timeout: testenv.Patience(3 * time.Second), LocalAddr: &net.TCPAddr{IP: source, Port: port},
		Control: shareAddr}
	if proto == podns.UDP {
		dialer.LocalAddr = &net.UDPAddr{IP: source, Port: port}
	}
	err = c.ns.Do(func() (err error) { conn, err = dialer.Dial(strings.ToLower(string(proto)), to.String()); return err })
	return conn, err
}

// hangUpFrom makes a connection from a port, asks, and closes it before the server does.
func (c *client) hangUpFrom(port int, to netip.AddrPort) error {
	conn, err := c.dialFrom(podns.TCP, port, to)
	if err != nil {
		return err
	}
	return errors.Join(ask(conn), conn.Close())
}

// shareAddr lets several sockets have one port.
func shareAddr(network, address string, raw syscall.RawConn) error {
	var set error
	err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(reuseAddr(network, address, raw), err, set)
}
