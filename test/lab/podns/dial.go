package podns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is what became of an attempt to reach a port.
type Outcome string

// The outcomes.
const (
	Answered Outcome = "answered"
	Refused  Outcome = "refused" // a reset, or an ICMP error
	Silent   Outcome = "silent"  // no answer in time
)

// Answer says how a Dial went.
type Answer struct {
	Outcome Outcome
	// Name is what the responder calls itself; empty unless Answered.
	Name string
	// Port is the one that it was asked at, behind whatever translates ports on the way.
	Port uint16
	// Source is this side's address as the responder saw it; not valid unless Answered.
	Source netip.AddrPort
	// Detail is the error in words; empty when Answered.
	Detail string
}

// retransmit is how often a datagram is repeated until it is answered.
const retransmit = 200 * time.Millisecond

// Dial sends real packets from the namespace to a port and reads the responder's answer. It returns an error only when
// the attempt itself could not be made.
func (n Namespace) Dial(proto Proto, to netip.AddrPort, timeout time.Duration) (answer Answer, err error) {
	err = n.Do(func() error {
		answer, err = dialHere(proto, to, timeout)
		return err
	})
	if err != nil {
		return Answer{}, fmt.Errorf("dial %s %s: %w", proto, to, err)
	}
	return answer, nil
}

func dialHere(proto Proto, to netip.AddrPort, timeout time.Duration) (Answer, error) {
	domain := unix.AF_INET
	if to.Addr().Is6() {
		domain = unix.AF_INET6
	}
	typ, number := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch proto {
	case UDP:
		typ, number = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case SCTP:
		number = unix.IPPROTO_SCTP
	case TCP:
	default:
		return Answer{}, fmt.Errorf("unknown protocol %q", proto)
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, number)
	if err != nil {
		return Answer{}, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(timeout)
	if proto == UDP {
		if err := bindUnused(fd, to.Addr()); err != nil {
			return Answer{}, err
		}
	}
	if err := connect(fd, to, deadline); err != nil {
		return failed(err)
	}
	if proto == UDP {
		return askUDP(fd, deadline)
	}
	return readAnswer(fd, deadline)
}

// The source ports of UDP, the kernel's default range.
const (
	firstPort = 32768
	portCount = 60999 - firstPort + 1
)

// ports counts on from where no other process of the lab began.
var ports = func() *atomic.Uint32 {
	var n atomic.Uint32
	n.Store(rand.Uint32N(portCount))
	return &n
}()

// bindUnused gives a UDP socket the next source port. The kernel draws ports at random, and a port that is drawn twice
// goes on with the connection that had it before, at the endpoint that that one had: for conntrack, and so for a
// Service, an attempt of UDP is a new connection only if its port was not used lately.
func bindUnused(fd int, to netip.Addr) error {
	local := netip.IPv6Unspecified()
	if to.Is4() {
		local = netip.IPv4Unspecified()
	}
	var err error
	for range portCount {
		port := uint16(firstPort + ports.Add(1)%portCount)
		if err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, port))); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return os.NewSyscallError("bind", err)
}

func connect(fd int, to netip.AddrPort, deadline time.Time) error {
	err := unix.Connect(fd, sockaddr(to))
	if !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
		return err
	}
	if err := wait(fd, unix.POLLOUT, deadline); err != nil {
		return err
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = syscall.Errno(code)
	}
	return err
}

// wait returns when the socket is ready, and EAGAIN when the time is up. The thread is this attempt's own, so it may
// block.
func wait(fd int, events int16, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return unix.EAGAIN
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// askUDP repeats the question, since datagrams may be lost.
func askUDP(fd int, deadline time.Time) (Answer, error) {
	for {
		if _, err := unix.Write(fd, []byte("?")); err != nil {
			return failed(err)
		}
		next := time.Now().Add(retransmit)
		if next.After(deadline) {
			next = deadline
		}
		answer, err := readAnswer(fd, next)
		if err != nil || answer.Outcome != Silent || next.Equal(deadline) {
			return answer, err
		}
	}
}

// readAnswer reads up to the end of the line.
func readAnswer(fd int, deadline time.Time) (Answer, error) {
	var text strings.Builder
	buf := make([]byte, 512)
	for {
		if err := wait(fd, unix.POLLIN, deadline); err != nil {
			return failed(err)
		}
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return failed(err)
		}
		text.Write(buf[:max(n, 0)])
		if line, ok := strings.CutSuffix(text.String(), "\n"); ok {
			return ParseAnswer(line)
		}
		if n == 0 {
			return Answer{Outcome: Refused, Detail: "the connection was closed without an answer"}, nil
		}
	}
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// failed sorts an error of the network from one of the attempt.
func failed(err error) (Answer, error) {
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ETIMEDOUT):
		return Answer{Outcome: Silent, Detail: "no answer"}, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err,
			unix.ECONNABORTED):
		return Answer{Outcome: Refused, Detail: err.Error()}, nil
	}
	return Answer{}, err
}
