package lab

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/weft-cni/weft/internal/testing/apiserver"
)

// KeepState has a lab's API server keep its state, for lies that serve an older one.
func KeepState(ctx context.Context, name string) error {
	return ask(ctx, name, http.MethodPost, "/v1/keep", new(struct{}))
}

// Lie changes what a lab's API server lies about to the agents; the zero Lie is the truth. The lab itself goes on with
// the true objects.
func Lie(ctx context.Context, name string, l apiserver.Lie) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return ask(ctx, name, http.MethodPost, "/v1/lie?lie="+url.QueryEscape(string(text)), new(apiserver.Lie))
}

// serveKeep answers KeepState.
func (l *Lab) serveKeep(w http.ResponseWriter, _ *http.Request) {
	l.server.Keep()
	answer(w, struct{}{})
}

// serveLie answers Lie.
func (l *Lab) serveLie(w http.ResponseWriter, r *http.Request) {
	var lie apiserver.Lie
	err := json.Unmarshal([]byte(r.FormValue("lie")), &lie)
	if err == nil {
		err = l.server.Lie(lie)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, lie)
}
