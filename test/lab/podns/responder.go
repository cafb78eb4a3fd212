package podns

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Proto is a transport protocol, in Kubernetes' words.
type Proto string

// The protocols.
const (
	TCP  Proto = "TCP"
	UDP  Proto = "UDP"
	SCTP Proto = "SCTP"
)

// Port is a port with its protocol.
type Port struct {
	Proto  Proto  `json:"protocol"`
	Number uint16 `json:"port"`
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Proto) }

// Responder answers on ports of a namespace with a name, so that clients know whom they reached, and with its port and
// the asker's address as they arrived there.
type Responder struct {
	ns   Namespace
	name string

	mu   sync.Mutex
	open map[Port]io.Closer
}

// NewResponder gives a responder that listens nowhere yet.
func NewResponder(ns Namespace, name string) *Responder {
	return &Responder{ns: ns, name: name, open: map[Port]io.Closer{}}
}

// Listen makes the responder listen on exactly these ports. It returns those that this machine's kernel has no protocol
// for.
func (r *Responder) Listen(ports []Port) (missing []Port, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range slices.Collect(maps.Keys(r.open)) {
		if !slices.Contains(ports, p) {
			r.close(p)
		}
	}
	err = r.ns.Do(func() error {
		for _, p := range ports {
			if r.open[p] != nil {
				continue
			}
			c, err := r.listen(p)
			if errors.Is(err, unix.EPROTONOSUPPORT) {
				missing = append(missing, p)
				continue
			}
			if err != nil {
				return fmt.Errorf("listen on port %s of %s: %w", p, r.name, err)
			}
			r.open[p] = c
		}
		return nil
	})
	return missing, err
}

// Close stops listening.
func (r *Responder) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.open {
		r.close(p)
	}
}

func (r *Responder) close(p Port) {
	_ = r.open[p].Close() // the listener is given up
	delete(r.open, p)
}

// listen runs in the namespace.
func (r *Responder) listen(p Port) (io.Closer, error) {
	if p.Proto == UDP {
		conn, err := listenUDP(p)
		if err != nil {
			return nil, err
		}
		go r.answerUDP(conn, p.Number)
		return conn, nil
	}
	l, err := listenStream(p)
	if err != nil {
		return nil, err
	}
	go r.answerStream(l, p.Number)
	return l, nil
}

func listenStream(p Port) (net.Listener, error) {
	if p.Proto == TCP {
		return net.ListenTCP("tcp", &net.TCPAddr{Port: int(p.Number)})
	}
	// The net package does not know SCTP, but a one-to-one SCTP socket is used like one of TCP.
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), p.String())
	defer file.Close() // FileListener keeps a duplicate
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(p.Number)}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return net.FileListener(file)
}

func (r *Responder) answerStream(l net.Listener, port uint16) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, syscall.ECONNABORTED) {
			continue
		}
		if err != nil {
			return // closed
		}
		go func() {
			// The client may be gone.
			peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
			_, _ = io.WriteString(conn, r.answer(port, peer))
			_ = conn.Close()
		}()
	}
}

// listenUDP listens on a socket that tells which address each datagram was for.
func listenUDP(p Port) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(p.Number)})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) // of IPv4, too
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), conn.Close())
	}
	return conn, nil
}

// answerUDP answers from the address that was asked: a node has several.
func (r *Responder) answerUDP(conn *net.UDPConn, port uint16) {
	buf, control := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		_, n, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != len(control) {
			continue
		}
		// The way back is the routes' to choose, not that of the interface.
		clear(control[unix.CmsgSpace(0)+16:])
		_, _, _ = conn.WriteMsgUDPAddrPort([]byte(r.answer(port, from)), control, from) // a lost answer is asked for again
	}
}

// answer is one line: the name, the port that was asked and who asked. A socket of both families gives IPv4 in IPv6's
// clothes.
func (r *Responder) answer(port uint16, peer netip.AddrPort) string {
	return fmt.Sprintf("%s %d %s\n", r.name, port, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()))
}

// ParseAnswer reads what a responder said, without the end of the line.
func ParseAnswer(line string) (Answer, error) {
	answer, source := Answer{Outcome: Answered}, ""
	if _, err := fmt.Sscanf(line, "%s %d %s", &answer.Name, &answer.Port, &source); err != nil {
		return Answer{}, fmt.Errorf("read the answer %q: %w", line, err)
	}
	var err error
	if answer.Source, err = netip.ParseAddrPort(source); err != nil {
		return Answer{}, fmt.Errorf("read the answer %q: %w", line, err)
	}
	return answer, nil
}
