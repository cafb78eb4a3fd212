//go:build integration

package page

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/weft-cni/weft/internal/ui"
	"github.com/weft-cni/weft/pkg/report/api"
)

// deadline is that of everything that a test waits for, on a machine that is busy with other work.
const deadline = 3 * time.Minute

// serve serves the page over agents, and gives its address.
func serve(t *testing.T, down ui.Agent, agents map[string]api.Source) string {
	t.Helper()
	list := []ui.Agent{down}
	for name, agent := range agents {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		var config net.ListenConfig
		listener, err := config.Listen(t.Context(), "unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: api.Handler(agent)}
		go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
		t.Cleanup(func() { _ = server.Close() })
		list = append(list, ui.Agent{Node: name, Client: api.Client{Socket: socket}})
	}
	const token = "token"
	server := httptest.NewServer(ui.Handler(func(context.Context) ([]ui.Agent, error) { return list, nil }, token))
	t.Cleanup(server.Close)
	return server.URL + "/" + token + "/"
}

// start starts Chromium, whose tabs are contexts made of the one that is returned.
func start(t *testing.T) context.Context {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v; `make deps` installs it", err)
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(program), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.WSURLReadTimeout(deadline),
		// No name is looked up, whatever the page or the browser wants.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
	}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync"} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return ctx
}

// open opens a tab that shows the page, in a window of this size. The test fails when the page writes an error to the
// console, or wants anything from elsewhere.
func open(browser context.Context, t *testing.T, url string, width, height int64,
	steps ...step) context.Context {
	t.Helper()
	tab, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	var mu sync.Mutex
	var problems []string
	requests := 0
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if err := chromedp.Listen(tab, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			problem("exception: %v", e.ExceptionDetails)
		case *runtime.EventConsoleAPICalled:
			text, _ := json.Marshal(e.Args) // to name them, as well as that goes
			problem("console: %s %s", e.Type, text)
		case *log.EventEntryAdded:
			problem("browser: %s %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
		case *page.EventJavascriptDialogOpening:
			problem("dialog: %s", e.Message)
		case *network.EventRequestWillBeSent:
			requests++
			if !strings.HasPrefix(e.Request.URL, url) {
				problem("request to %s", e.Request.URL)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, text := range problems {
			t.Error(text)
		}
		if requests == 0 {
			t.Error("no request was seen: would those to elsewhere be?")
		}
	})
	do(tab, t, append([]step{send(network.Enable, network.EnableParams{}), chromedp.EmulateViewport(width, height)},
		steps...)...)
	return tab
}

// step is an action without a value.
type step = chromedp.Action[chromedp.Void]

// send sends a command of Chromium's protocol.
func send[P, R any](command cdp.Command[P, R], parameters P) step {
	return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
		_, err := cdp.Call(ctx, tab, command, parameters)
		return err
	})
}

// do runs steps in a tab.
func do(tab context.Context, t *testing.T, steps ...step) {
	t.Helper()
	for _, s := range steps {
		run(tab, t, s)
	}
}

// run runs an action in a tab.
func run[T any](tab context.Context, t *testing.T, action chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(tab, action)
	if err != nil {
		text, _ := chromedp.Run(tab, chromedp.Evaluate[string]("document.body.innerText")) // to explain the failure
		t.Fatalf("%v in the page\n%s", err, text)
	}
	return v
}

// until waits until an expression is true.
func until(expression string) step {
	return chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond),
		chromedp.WithPollingTimeout(deadline/2))
}

// value evaluates an expression.
func value[T any](tab context.Context, t *testing.T, expression string) T {
	t.Helper()
	return run(tab, t, chromedp.Evaluate[T](expression))
}
