// Package burst makes many short connections from a network namespace as fast as it can, and answers them in another.
//
// A Burst and a Server may be used from any goroutine. Both leave no connection behind, not even one in TIME_WAIT.
package burst

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/lab/podns"
)

// Burst is a number of connections, each from a port of its own.
type Burst struct {
	From  podns.Namespace
	Proto podns.Proto // TCP or UDP
	To    netip.AddrPort
	// FirstPort is the source port of the first connection; the others have the next ones.
	FirstPort uint16
	Count     int
	// Workers is how many connections are under way at once.
	Workers int
	// Timeout bounds one connection.
	Timeout time.Duration
	// Terse connections over TCP are closed as soon as they are there, but for each tenth.
	Terse bool
}

// Run makes the connections: a byte there and a byte back on each that is not terse. It blocks until all have ended;
// the error says how many were not answered, and why the first of them was not.
func (b Burst) Run() error {
	var next, failed atomic.Int64
	var workers sync.WaitGroup
	var mu sync.Mutex
	var first error
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	for range b.Workers {
		workers.Go(func() {
			if err := b.From.Do(func() error {
				for i := int(next.Add(1) - 1); i < b.Count; i = int(next.Add(1) - 1) {
					if err := b.one(b.FirstPort+uint16(i), b.Terse && b.Proto == podns.TCP && i%10 != 0); err != nil {
						failed.Add(1)
						fail(fmt.Errorf("from port %d: %w", b.FirstPort+uint16(i), err))
					}
				}
				return nil
			}); err != nil {
				failed.Add(1)
				fail(err)
			}
		})
	}
	workers.Wait()
	if n := failed.Load(); n > 0 {
		return fmt.Errorf("%d of %d %s connections to %s failed, the first one %w", n, b.Count, b.Proto, b.To, first)
	}
	return nil
}

// one runs in the namespace, on a thread that may block.
func (b Burst) one(port uint16, terse bool) error {
	domain, typ := unix.AF_INET6, unix.SOCK_STREAM
	var own, to unix.Sockaddr = &unix.SockaddrInet6{Port: int(port)}, &unix.SockaddrInet6{Port: int(b.To.Port()),
		Addr: b.To.Addr().As16()}
	if b.To.Addr().Is4() {
		domain = unix.AF_INET
		own, to = &unix.SockaddrInet4{Port: int(port)}, &unix.SockaddrInet4{Port: int(b.To.Port()), Addr: b.To.Addr().As4()}
	}
	if b.Proto == podns.UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(b.Timeout.Nanoseconds())
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout), // of connect, too (socket(7))
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
	); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if typ == unix.SOCK_STREAM {
		// Close resets the connection.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, own); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := again(func() error { return unix.Connect(fd, to) }); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if terse {
		return nil
	}
	buf := []byte{1}
	if err := again(func() error { _, err := unix.Write(fd, buf); return err }); err != nil {
		return os.NewSyscallError("write", err)
	}
	var n int
	if err := again(func() (err error) { n, err = unix.Read(fd, buf); return err }); err != nil {
		return os.NewSyscallError("read", err)
	}
	if n != len(buf) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// again repeats a call that a signal interrupted; the runtime sends some to its own threads.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Server answers each byte with one, over TCP and UDP, on one port of all addresses.
type Server struct {
	tcp net.Listener
	udp *net.UDPConn
}

// Serve listens in a namespace.
func Serve(ns podns.Namespace, port uint16) (*Server, error) {
	s := &Server{}
	if err := ns.Do(func() (err error) {
		if s.tcp, err = net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)}); err != nil {
			return err
		}
		if s.udp, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)}); err != nil {
			return errors.Join(err, s.tcp.Close())
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("serve on port %d: %w", port, err)
	}
	go s.accept()
	go s.answer()
	return s, nil
}

// Close ends the server.
func (s *Server) Close() error { return errors.Join(s.tcp.Close(), s.udp.Close()) }

func (s *Server) accept() {
	for {
		conn, err := s.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client has reset it already
		}
		go func() {
			buf := make([]byte, 1)
			for {
				n, err := conn.Read(buf)
				if err == nil {
					_, err = conn.Write(buf[:n])
				}
				if err != nil {
					_ = conn.Close() // the client has reset it
					return
				}
			}
		}()
	}
}

func (s *Server) answer() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.udp.WriteToUDPAddrPort(buf[:n], from) // a lost answer is the client's to report
		}
	}
}
