//go:build integration

package datapath

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
)

// SCTP goes through a Service in both directions, from a pod, a node and from outside, to another node. Open vSwitch's
// userspace datapath knows nothing of its ports, so there a port that is not the endpoint's is refused, and nothing
// arrives at a wrong one. Hardly any kernel has SCTP loaded, so the associations' packets (RFC 9260, section 3) are
// written and read through raw sockets.
func TestServiceSCTP(t *testing.T) {
	const port, nodePort, target = 9000, 30900, 9001
	dir := labtest.Write(t, map[string]string{"f.yaml": podManifest("client", "client", "node1", 9,
		"") + podManifest("host", "client", "node1", 9, hostNetwork) + fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: c, ports: [{name: tcp, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: %[1]d, targetPort: %[2]d, nodePort: %[3]d, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: web-same}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: %[2]d, protocol: SCTP}]
`, port, target, nodePort)})
	l := labtest.Up(t, "svcsctp", "-f", dir, "--ip-family=dual", "--nodes=2")
	s := l.Status()
	web := openClient(t, s, "web", "node2", "pod")
	clients := []*client{openClient(t, s, "client", "node1", "pod"), openClient(t, s, "host", "node1", "node"),
		openClient(t, s, "outside", "", "outside")}
	for _, is4 := range []bool{true, false} {
		server := web.sctp(t, is4)
		for i, from := range clients {
			// One port that the node's own connections keep, one that they do not.
			for _, local := range []uint16{uint16(2000 + i), uint16(40000 + i)} {
				to := netip.AddrPortFrom(of(serviceIPs(t, s, "web"), is4), port)
				if from.kind == "outside" {
					to = netip.AddrPortFrom(of(s.Nodes[0].Addrs, is4), nodePort)
				} else {
					associate(t, from, server, local, netip.AddrPortFrom(of(serviceIPs(t, s, "web-same"), is4), target), target)
				}
				if labtest.Datapath() == config.DatapathSystem {
					associate(t, from, server, local, to, target)
				} else {
					refused(t, from, server, local, to)
				}
			}
		}
	}
}

// associate begins an association: INIT there, INIT ACK back.
func associate(t *testing.T, from *client, server *sctpSocket, local uint16, to netip.AddrPort, target uint16) {
	t.Helper()
	const initiation, initiationAck = 1, 2
	what := fmt.Sprintf("from %s port %d to %s/sctp", from.name, local, to)
	tag := uint32(local)<<16 | uint32(to.Port())
	client := from.sctp(t, to.Addr().Is4())
	client.send(t, sctpAddr{to, local}, 0, initiation, tag)
	got, ok := server.receive(3*time.Second, func(p sctpPacket) bool {
		return p.initiateTag == tag && p.chunk == initiation
	})
	switch {
	case !ok:
		t.Errorf("%s: the INIT does not reach the endpoint", what)
		return
	case got.dstPort != target || !got.whole:
		t.Errorf("%s: the endpoint hears %+v, want port %d and a right checksum", what, got, target)
	}
	server.send(t, sctpAddr{got.src, got.dstPort}, tag, initiationAck, tag+1)
	back, ok := client.receive(3*time.Second, func(p sctpPacket) bool {
		return p.verificationTag == tag && p.chunk == initiationAck
	})
	switch {
	case !ok:
		t.Errorf("%s: the INIT ACK does not come back", what)
	case back.src != to || back.dstPort != local || !back.whole:
		t.Errorf("%s: the client hears %+v, want it from %s to port %d with a right checksum", what, back, to, local)
	}
}

// refused sends an INIT that no port of the endpoint may hear.
func refused(t *testing.T, from *client, server *sctpSocket, local uint16, to netip.AddrPort) {
	t.Helper()
	tag := uint32(local)<<16 | uint32(to.Port())
	from.sctp(t, to.Addr().Is4()).send(t, sctpAddr{to, local}, 0, 1, tag)
	if got, ok := server.receive(time.Second/2, func(p sctpPacket) bool { return p.initiateTag == tag }); ok {
		t.Errorf("from %s port %d to %s/sctp: the endpoint hears it: %+v", from.name, local, to, got)
	}
}

type sctpSocket struct {
	fd  int
	is4 bool
}

func (c *client) sctp(t *testing.T, is4 bool) *sctpSocket {
	t.Helper()
	s := &sctpSocket{is4: is4}
	domain := unix.AF_INET6
	if is4 {
		domain = unix.AF_INET
	}
	if err := c.ns.Do(func() (err error) {
		s.fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return os.NewSyscallError("socket", err)
	}); err != nil {
		t.Fatalf("SCTP in %s: %v", c.name, err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	tick := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		t.Fatal(err)
	}
	return s
}

// sctpAddr is where a packet goes and the port that it comes from.
type sctpAddr struct {
	to   netip.AddrPort
	from uint16
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// send sends one packet with one chunk of the INIT kind.
func (s *sctpSocket) send(t *testing.T, a sctpAddr, verificationTag uint32, chunk byte, initiateTag uint32) {
	t.Helper()
	b := binary.BigEndian.AppendUint16(nil, a.from)
	b = binary.BigEndian.AppendUint16(b, a.to.Port())
	b = binary.BigEndian.AppendUint32(b, verificationTag)
	b = append(b, 0, 0, 0, 0, // the checksum
		chunk, 0, 0, 20) // type, flags, length
	b = binary.BigEndian.AppendUint32(b, initiateTag)
	b = append(b, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1) // window, streams, first number
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	var to unix.Sockaddr
	if s.is4 {
		to = &unix.SockaddrInet4{Addr: a.to.Addr().As4()}
	} else {
		to = &unix.SockaddrInet6{Addr: a.to.Addr().As16()}
	}
	if err := unix.Sendto(s.fd, b, 0, to); err != nil {
		t.Fatalf("send SCTP to %s: %v", a.to, err)
	}
}

type sctpPacket struct {
	src                          netip.AddrPort
	dstPort                      uint16
	verificationTag, initiateTag uint32
	chunk                        byte
	whole                        bool // the checksum is right
}

// receive waits for a packet.
func (s *sctpSocket) receive(patience time.Duration, want func(sctpPacket) bool) (sctpPacket, bool) {
	b := make([]byte, 2048)
	for deadline := time.Now().Add(testenv.Patience(patience)); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(s.fd, b, 0)
		if err != nil {
			continue // a tick
		}
		m := b[:n]
		var src netip.Addr
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			src = netip.AddrFrom4(from.Addr)
			m = m[int(m[0]&0xf)*4:] // IPv4 raw sockets show the header
		case *unix.SockaddrInet6:
			src = netip.AddrFrom16(from.Addr)
		}
		if len(m) < 20 {
			continue
		}
		sum := binary.LittleEndian.Uint32(m[8:])
		clear(m[8:12])
		p := sctpPacket{
			src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(m)), dstPort: binary.BigEndian.Uint16(m[2:]),
			verificationTag: binary.BigEndian.Uint32(m[4:]), chunk: m[12], initiateTag: binary.BigEndian.Uint32(m[16:]),
			whole: sum == crc32.Checksum(m, castagnoli),
		}
		if want(p) {
			return p, true
		}
	}
	return sctpPacket{}, false
}

// serviceIPs are the cluster IPs of a Service.
func serviceIPs(t *testing.T, s lab.Status, name string) (list []netip.Addr) {
	t.Helper()
	for _, one := range s.Services {
		if one.Name != name {
			continue
		}
		for _, text := range one.IPs {
			a, err := netip.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, a)
		}
	}
	return list
}
