package sysdump

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// TestFailures: what fails is in the index, and what others said is in the archive; what an item said before it failed
// is kept.
func TestFailures(t *testing.T) {
	items := []Item{
		{"good.txt", func(context.Context) ([]byte, error) { return []byte("well"), nil }},
		{"bad.txt", func(context.Context) ([]byte, error) { return nil, errors.New("no answer, password=geheim") }},
		{"half.txt", func(context.Context) ([]byte, error) { return []byte("half"), errors.New("it ended") }},
	}
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, "dump", time.Unix(0, 0), items); err != nil {
		t.Fatal(err)
	}
	files := testenv.Untar(t, &b)
	if len(files) != 3 || files["dump/good.txt"] != "well" || files["dump/half.txt"] != "half" {
		t.Errorf("%v", files)
	}
	want := "good.txt\t4 bytes\nbad.txt\t0 bytes\tno answer, password=REDACTED\nhalf.txt\t4 bytes\tit ended\n"
	if files["dump/index.txt"] != want {
		t.Errorf("index %q, want %q", files["dump/index.txt"], want)
	}
	b.Reset()
	if _, err := Write(t.Context(), &b, "dump", time.Unix(0, 0), items[1:2]); err == nil {
		t.Error("nothing was collected, and there is no error")
	}
}

// TestRedaction: no secret of an object or of a log is left; what a network needs stays.
func TestRedaction(t *testing.T) {
	object := `{"items":[{"kind":"Pod","metadata":{"name":"web","labels":{"app":"web"},"managedFields":[{"x":"GEHEIM1"}],
		"annotations":{"weft.dev/log-policy":"true","kubectl.kubernetes.io/last-applied-configuration":"GEHEIM2","own":"GEHEIM3"}},
		"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"command":["run","GEHEIM4"],
		"args":["--password=GEHEIM5"],"env":[{"name":"KEY","value":"GEHEIM6"}],"livenessProbe":{"httpGet":{"httpHeaders":
		[{"name":"Authorization","value":"GEHEIM7"}]}}}],"volumes":[{"name":"v","hostPath":{"path":"/GEHEIM8"}}]},
		"status":{"podIP":"10.0.0.1","message":"get https://user:GEHEIM9@host/ failed"}},{"kind":"ConfigMap","data":{"a":"GEHEIM10"}}]}`
	text, err := Objects([]byte(object), false)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "GEHEIM") {
		t.Errorf("secrets are left:\n%s", text)
	}
	for _, want := range []string{`"app": "web"`, `"weft.dev/log-policy": "true"`, `"nodeName": "n1"`,
		`"containerPort": 80`, `"podIP": "10.0.0.1"`, `https://user:REDACTED`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing:\n%s", want, text)
		}
	}
	text, err = Objects([]byte(`{"kind":"ConfigMap","data":{"config.yaml":"tunnelType: geneve"}}`), true)
	if err != nil || !strings.Contains(string(text), "tunnelType: geneve") {
		t.Errorf("Weft's configuration: %s, %v", text, err)
	}
	if _, err := Objects([]byte("no JSON, password: GEHEIM"), false); err == nil {
		t.Error("a text that is not JSON is taken")
	}
	log := "a\nAuthorization: Bearer GEHEIM1\ntoken=GEHEIM2 next\n\"password\": \"GEHEIM3\",\n" +
		"eyJGEHEIM4xxxxxx.eyJGEHEIM5xxxxxx.GEHEIM6\n-----BEGIN RSA PRIVATE KEY-----\nGEHEIM7\n" +
		"-----END RSA PRIVATE KEY-----\nz\n"
	got := string(Text([]byte(log)))
	if strings.Contains(got, "GEHEIM") || !strings.HasPrefix(got, "a\n") || !strings.HasSuffix(got, "\nz\n") ||
		!strings.Contains(got, "token=REDACTED next") {
		t.Errorf("log:\n%s", got)
	}
}
