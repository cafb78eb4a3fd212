package healthcheck_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/healthcheck"
)

// ports is a fake of the node's ports: each is a loopback port that the kernel chose, and some cannot be opened.
type ports struct {
	mu     sync.Mutex
	addrs  map[uint16]string
	taken  map[uint16]bool
	opened []uint16
}

func (p *ports) listen(port uint16) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[port] {
		return nil, errors.New("address already in use")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		p.addrs[port] = l.Addr().String()
		p.opened = append(p.opened, port)
	}
	return l, err
}

func (p *ports) take(port uint16, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[port] = taken
}

func (p *ports) url(port uint16) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "http://" + p.addrs[port] + "/any"
}

type reports struct {
	mu   sync.Mutex
	list []string
}

func (r *reports) add(service string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprint(service, ": ", err))
}

func (r *reports) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

func start(t *testing.T, opt healthcheck.Options) (*healthcheck.Server, *ports, *reports) {
	t.Helper()
	p, r := &ports{addrs: map[uint16]string{}, taken: map[uint16]bool{}}, &reports{}
	opt.Listen, opt.Problem = p.listen, r.add
	s := healthcheck.New(opt)
	t.Cleanup(s.Close)
	return s, p, r
}

// answer is a load balancer's response.
type answer struct {
	status                    int
	body, weight, contentType string
}

func get(t *testing.T, url string) answer {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, string(body), resp.Header.Get("X-Load-Balancing-Endpoint-Weight"),
		resp.Header.Get("Content-Type")}
}

func TestAnswer(t *testing.T) {
	var sick atomic.Bool
	s, p, r := start(t, healthcheck.Options{Healthy: func() bool { return !sick.Load() }})
	check := func(what string, endpoints, status int, want string) {
		t.Helper()
		s.Sync([]healthcheck.Service{{Name: "shop/web", Port: 32000, Endpoints: endpoints}})
		if got, want := get(t, p.url(32000)), (answer{status, want, fmt.Sprint(endpoints), "application/json"}); got != want {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
		}
	}
	check("two endpoints", 2, http.StatusOK,
		"{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": "+
			"2,\n\t\"serviceProxyHealthy\": true\n}")
	check("no endpoints", 0, http.StatusServiceUnavailable,
		"{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": "+
			"0,\n\t\"serviceProxyHealthy\": true\n}")
	sick.Store(true)
	check("a node that is not well", 1, http.StatusServiceUnavailable,
		"{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": "+
			"1,\n\t\"serviceProxyHealthy\": false\n}")
	if got := r.take(); got != nil {
		t.Errorf("reported %q", got)
	}
}

// The last Sync counts, and ports that stay are not reopened.
func TestSync(t *testing.T) {
	s, p, _ := start(t, healthcheck.Options{})
	s.Sync([]healthcheck.Service{{Name: "ns/a", Port: 1, Endpoints: 1}, {Name: "ns/b", Port: 2, Endpoints: 1},
		{Name: "ns/none"}})
	s.Sync([]healthcheck.Service{{Name: "ns/b", Port: 2, Endpoints: 1}, {Name: "ns/a", Port: 1, Endpoints: 3}})
	if want := []uint16{1, 2}; !slices.Equal(p.opened, want) {
		t.Errorf("opened %v, want %v", p.opened, want)
	}
	if got := get(t, p.url(1)); got.weight != "3" {
		t.Error("the number of endpoints did not change")
	}
	// One port becomes another Service's, the other is closed.
	gone := p.url(1)
	s.Sync([]healthcheck.Service{{Name: "ns/c", Port: 2, Endpoints: 5}})
	if got := get(t, p.url(2)); got.weight != "5" {
		t.Error("the port's new Service is not the one that is answered for")
	}
	if len(p.opened) != 2 {
		t.Errorf("opened %v: a port that stays was opened again", p.opened)
	}
	if resp, err := http.Get(gone); err == nil {
		resp.Body.Close()
		t.Error("the port of a Service that is gone still answers")
	}
	s.Sync([]healthcheck.Service{{Name: "ns/a", Port: 1, Endpoints: 1}})
	if got := get(t, p.url(1)); got.status != http.StatusOK {
		t.Error("a port that came back does not answer")
	}
}

func TestPortInUse(t *testing.T) {
	s, p, r := start(t, healthcheck.Options{Retry: time.Millisecond})
	p.take(1, true)
	services := []healthcheck.Service{{Name: "ns/a", Port: 1, Endpoints: 1}, {Name: "ns/b", Port: 2, Endpoints: 1}}
	s.Sync(services)
	s.Sync(services)
	if got := get(t, p.url(2)); got.status != http.StatusOK {
		t.Error("another Service's port does not answer")
	}
	if got, want := r.take(), []string{"ns/a: serve health check port 1: address already in use; retrying"}; !slices.Equal(
		got,
		want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	p.take(1, false)
	var got []string
	testenv.Until(t, "something is reported", func() bool {
		got = r.take()
		return len(got) > 0
	})
	if want := []string{"ns/a: <nil>"}; !slices.Equal(got, want) {
		t.Fatalf("reported %q, want %q", got, want)
	}
	if got := get(t, p.url(1)); got.status != http.StatusOK {
		t.Error("the port does not answer")
	}
}

func TestTwoServicesWithOnePort(t *testing.T) {
	s, p, r := start(t, healthcheck.Options{Retry: time.Millisecond})
	s.Sync([]healthcheck.Service{{Name: "ns/b", Port: 1, Endpoints: 2}, {Name: "ns/a", Port: 1, Endpoints: 1}})
	if got := get(t, p.url(1)); got.weight != "1" {
		t.Error("the first by name does not have the port")
	}
	if got, want := r.take(), []string{"ns/b: serve health check port 1: Service ns/a has the same port and takes " +
		"precedence"}; !slices.Equal(got,
		want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	s.Sync([]healthcheck.Service{{Name: "ns/b", Port: 1, Endpoints: 2}})
	if got, want := r.take(), []string{"ns/b: <nil>"}; !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
}

// A listener that fails is replaced.
func TestListenerLost(t *testing.T) {
	var mu sync.Mutex
	var last net.Listener
	opened := 0
	s := healthcheck.New(healthcheck.Options{Retry: time.Millisecond, Listen: func(uint16) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		mu.Lock()
		defer mu.Unlock()
		last, opened = l, opened+1
		return l, err
	}})
	defer s.Close()
	s.Sync([]healthcheck.Service{{Name: "ns/a", Port: 1, Endpoints: 1}})
	mu.Lock()
	last.Close()
	mu.Unlock()
	testenv.Until(t, "the port is opened again", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return opened == 2
	})
	mu.Lock()
	defer mu.Unlock()
	if got := get(t, "http://"+last.Addr().String()); got.status != http.StatusOK {
		t.Error("the new listener does not answer")
	}
}

// Without a Listen function, a server listens on the node's addresses of both families.
func TestAllAddresses(t *testing.T) {
	var reported reports
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := free.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal("no TCP address")
	}
	free.Close()
	s := healthcheck.New(healthcheck.Options{Problem: reported.add})
	defer s.Close()
	s.Sync([]healthcheck.Service{{Name: "ns/a", Port: uint16(addr.Port), Endpoints: 1}})
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		if got := get(t, fmt.Sprintf("http://%s:%d", host, addr.Port)); got.status != http.StatusOK {
			t.Errorf("%s: %d", host, got.status)
		}
	}
	s.Close()
	s.Sync([]healthcheck.Service{{Name: "ns/a", Port: uint16(addr.Port), Endpoints: 1}}) // does nothing
	if l, err := net.Listen("tcp", fmt.Sprint(":", addr.Port)); err != nil {
		t.Errorf("the port is still taken after Close: %v", err)
	} else {
		l.Close()
	}
	if got := reported.take(); got != nil {
		t.Errorf("reported %q", got)
	}
}
