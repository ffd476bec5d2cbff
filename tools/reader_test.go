package tools

import (
	"context"
	"fmt"
	"testing"
	"time"

	"countersign/action"
)

// holding is a cluster that serves kinds and holds what the tests give it: the
// answer to a request by Action.String, and an error for every other request.
type holding struct {
	Reader
	t       testing.TB
	tool    *Tool
	answers map[string]string
	asked   []string
	judged  action.Action // what policy was asked about last
}

func (h *holding) Read(_ context.Context, a action.Action) (Response, error) {
	if err := h.tool.MayRead(a); err != nil {
		h.t.Error(err) // a bug of the tool: the gate would refuse it
	}
	h.asked = append(h.asked, a.String())
	body, ok := h.answers[a.String()]
	if !ok {
		return Response{}, fmt.Errorf("%s is not found", a)
	}
	return Response{Action: a, Body: []byte(body)}, nil
}

// Kubectl is kubectl's code upon what the tests say that it makes of the cluster.
func (h *holding) Kubectl(ctx context.Context, cluster string) Kubectl {
	return heldKubectl{Kubectl: h.Reader.Kubectl(ctx, cluster), h: h}
}

// cluster is one that serves kinds and holds nothing that could be read.
func cluster() Reader { return Offline(resolver{}, time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)) }

// held is one that holds what is in goodCalls' cluster.
func held(t testing.TB, tool *Tool, answers map[string]string) *holding {
	return &holding{Reader: cluster(), t: t, tool: tool, answers: answers}
}

// planIn decodes and plans a call in a cluster that holds something.
func planIn(t testing.TB, tool *Tool, answers map[string]string, args string) (Call, error) {
	t.Helper()
	decoded, err := tool.Decode([]byte(args))
	if err != nil {
		return Call{}, err
	}
	return tool.Plan(t.Context(), held(t, tool, answers), decoded)
}
