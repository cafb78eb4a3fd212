package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// lastFrames is how long sniff waits for the frames that it was told to await.
const lastFrames = 5 * time.Second

// sniffTick is how often sniff checks whether it must end.
const sniffTick = 50 * time.Millisecond

// sniff counts what arrives, by mark, until its standard input is closed: the frames on an interface or, with --port,
// the datagrams that the kernel accepts for a UDP port. What it was told to await may come a little later.
func sniff(args []string) error {
	flags := flag.NewFlagSet("sniff", flag.ContinueOnError)
	iface := flags.String("iface", "eth0", "interface to listen on")
	port := flags.Int("port", 0, "UDP port to listen on, instead of an interface")
	tag := flags.String("await", "", "tag of frames to wait for")
	count := flags.Int("count", 0, "how many of them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	receive, err := frames(*iface)
	if *port != 0 {
		receive, err = datagrams(*port)
	}
	if err != nil {
		return err
	}
	done := ready()
	var deadline time.Time // set when standard input was closed
	reply := wire.SniffReply{Seen: map[string]int{}}
	buf := make([]byte, maxDatagram)
	for deadline.IsZero() || (reply.Seen[*tag] < *count && time.Now().Before(deadline)) {
		select {
		case <-done:
			if deadline.IsZero() {
				deadline = time.Now().Add(lastFrames)
			}
		default:
		}
		n, err := receive(buf)
		if err != nil {
			return err
		}
		if n > 0 {
			reply.Frames++
		}
		if found, ok := wire.Tag(buf[:n]); ok {
			reply.Seen[found]++
		}
	}
	return printJSON(reply)
}

// receiver reads one frame; it returns 0 when none came within a tick.
type receiver func(buf []byte) (n int, err error)

func frames(iface string) (receiver, error) {
	fd, _, err := packetSocket(iface)
	if err != nil {
		return nil, err
	}
	tick := unix.NsecToTimeval(sniffTick.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		return nil, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	return func(buf []byte) (int, error) {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return 0, nil
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			return 0, nil
		}
		return n, os.NewSyscallError("recvfrom", err)
	}, nil
}

func datagrams(port int) (receiver, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	return func(buf []byte) (int, error) {
		if err := conn.SetReadDeadline(time.Now().Add(sniffTick)); err != nil {
			return 0, err
		}
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil
		}
		return n, err
	}, nil
}
