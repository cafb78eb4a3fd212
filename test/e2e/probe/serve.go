package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// serve runs the echo servers and the HTTP server on all addresses of both families until it is told to end.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	echo := flags.Int("echo", 7000, "port of the TCP and UDP echo servers")
	web := flags.Int("http", 7080, "port of the HTTP server")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", *echo))
	if err != nil {
		return err
	}
	udp, err := listenUDP(*echo)
	if err != nil {
		return err
	}
	httpListener, err := net.Listen("tcp", fmt.Sprintf(":%d", *web))
	if err != nil {
		return err
	}
	failed := make(chan error, 2+len(udp))
	go func() { failed <- echoTCP(tcp) }()
	for _, socket := range udp {
		go func() { failed <- echoUDP(socket) }()
	}
	go func() { failed <- http.Serve(httpListener, httpHandler()) }()
	slog.Info("serving", "echo", *echo, "http", *web)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// echoTCP greets each connection with a line that holds the client's address as seen here, then echoes.
func echoTCP(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("TCP echo server: %w", err)
		}
		go func() {
			defer conn.Close()
			if _, err := fmt.Fprintf(conn, "%s\n", seenFrom(conn.RemoteAddr())); err != nil {
				return // the client went away, which is its right
			}
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// seenFrom is an address without the IPv4-in-IPv6 form that a dual-stack socket reports.
func seenFrom(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}

func httpHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, name)
	})
	mux.HandleFunc("/sink", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(wire.Transfer{Bytes: n, SHA256: hex.EncodeToString(hash.Sum(nil))})
	})
	return mux
}
