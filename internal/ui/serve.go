package ui

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// Server is a page that is served.
type Server struct {
	// URL is the address that opens the page. Its path is a secret.
	URL      string
	listener net.Listener
	http     *http.Server
}

// Listen opens a port of the loopback interface; 0 is any free one. The page has a new random address each time.
func Listen(ctx context.Context, agents Agents, port uint16) (*Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("open the port of the page: %w", err)
	}
	token := rand.Text()
	const headers = 10 * time.Second
	return &Server{
		URL: fmt.Sprintf("http://%s/%s/", listener.Addr(), token), listener: listener,
		http: &http.Server{Handler: Handler(agents, token), ReadHeaderTimeout: headers},
	}, nil
}

// Serve serves the page until the context ends.
func (s *Server) Serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = s.http.Close() })() // Serve returns then
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

//go:embed static
var embedded embed.FS

// policy is the Content-Security-Policy: the page's own files and nothing else, and text never becomes markup.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// types are the media types of the page's files.
var types = map[string]string{
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// Handler serves the page below /TOKEN/. Other users of the machine, and pages of other origins, do not know the token.
// A request that names another host than this one is refused, too, so that a name which an attacker resolves to the
// loopback address is of no use (DNS rebinding).
func Handler(agents Agents, token string) http.Handler {
	static, err := fs.Sub(embedded, "static")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	inner := http.NewServeMux()
	files := http.FileServerFS(static)
	inner.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// Not what the system thinks of the name: Windows' registry may call scripts plain text.
		if kind := types[path.Ext(r.URL.Path)]; kind != "" {
			w.Header().Set("Content-Type", kind)
		}
		files.ServeHTTP(w, r)
	})
	register(inner, &data{list: agents})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for key, value := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
			"Cache-Control": "no-store",
		} {
			w.Header().Set(key, value)
		}
		given, rest, slash := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		switch {
		case !loopback(r.Host):
			http.Error(w, "the page is served to this machine only, as 127.0.0.1 or localhost", http.StatusForbidden)
		case foreign(r):
			http.Error(w, "the request comes from another page", http.StatusForbidden)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the page only reads", http.StatusMethodNotAllowed)
		case subtle.ConstantTimeCompare([]byte(given), []byte(token)) != 1:
			http.Error(w, "open the whole address that weftctl ui has printed", http.StatusForbidden)
		case !slash:
			http.Redirect(w, r, "/"+token+"/", http.StatusSeeOther)
		default:
			below := r.Clone(r.Context())
			below.URL = &url.URL{Path: path.Clean("/" + rest), RawQuery: r.URL.RawQuery}
			inner.ServeHTTP(w, below)
		}
	})
}

// loopback reports whether a Host header names this machine.
func loopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return name == "127.0.0.1" || name == "localhost" || strings.Trim(name, "[]") == "::1"
}

// foreign reports whether a browser says that another origin's page makes the request. Typing the address is not one.
func foreign(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return true
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}
