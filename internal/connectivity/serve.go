package connectivity

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// maxBody bounds what a server sends back.
const maxBody = 1 << 20

// Serve answers at an address ("" is every one) until the context ends: HTTP on all ports, with the body of the
// request, and UDP on the first one, with the datagram.
func Serve(ctx context.Context, address string, ports ...string) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var lc net.ListenConfig
	datagrams, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(address, ports[0]))
	if err != nil {
		return err
	}
	defer datagrams.Close()
	go func() { stop(echo(datagrams)) }()
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(sendBack)}
	defer server.Close()
	for _, port := range ports {
		listener, err := lc.Listen(ctx, "tcp", net.JoinHostPort(address, port))
		if err != nil {
			return err
		}
		go func() { stop(server.Serve(listener)) }()
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// echo sends datagrams back until the socket is closed.
func echo(conn net.PacketConn) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = conn.WriteTo(buf[:n], from) // the client notices
	}
}

func sendBack(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(w, http.MaxBytesReader(w, r.Body, maxBody)) // the client notices
}
