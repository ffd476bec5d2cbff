package tools

import (
	"context"
	"errors"
	"time"

	"countersign/action"
)

// Reader is what a tool may ask while it plans. Each request is decided by
// policy for the caller, is on record, and lies within the tool's Reads.
type Reader interface {
	Resolver
	// Read sends one get or list. What policy does not allow outright, and what
	// the API server refuses, is an error that ends the call in the right words
	// when the plan function returns it. What comes back is not masked: it may
	// become part of a request. Whatever of it becomes an Answer must be.
	Read(ctx context.Context, a action.Action) (Response, error)
	// Forecast asks the API server what a change by a tool would do, and policy
	// what it would say; nothing is changed. It needs leave to get the object.
	Forecast(ctx context.Context, tool string, a action.Action) (Forecast, error)
	// Verdict is policy's answer to a request by the caller, as far as it can be
	// told from the request alone.
	Verdict(tool string, a action.Action) Verdict
	// Kubectl is kubectl's own code upon Read.
	Kubectl(ctx context.Context, cluster string) Kubectl
	// Served is what a cluster serves, and its version.
	Served(ctx context.Context, cluster string) (Served, error)
	// Now is the time at which the call is planned.
	Now() time.Time
}

// Kubectl is what kubectl's own packages make of objects. Each reads by
// Reader.Read alone, so that a part that the caller may not see is missing, or
// makes it fail as kubectl does when RBAC forbids it.
type Kubectl interface {
	// Describe is kubectl describe, with related objects and events. Values are masked.
	Describe(r action.Resource, namespace, name string) (string, error)
	// RolloutStatus is a sentence about a rollout, and whether it is over.
	RolloutStatus(a action.Action, object map[string]any) (text string, done bool, err error)
	// RolloutHistory lists the revisions, or shows the pod template of one that is not 0.
	RolloutHistory(a action.Action, revision int64) (string, error)
	// Undo is the patch by which kubectl rollout undo goes back to a revision, 0
	// for the one before.
	Undo(a action.Action, object map[string]any, revision int64) (action.Action, error)
	// Evictable lists the pods that kubectl drain would evict from a node.
	Evictable(node string, options DrainOptions) ([]PodRef, error)
	// Explain is kubectl explain: fields are the path below the kind.
	Explain(r action.Resource, fields []string, recursive bool) (string, error)
}

// DrainOptions are those of kubectl drain.
type DrainOptions struct {
	IgnoreDaemonSets, DeleteEmptyDirData, Force bool
	PodSelector                                 string
}

// PodRef names a pod.
type PodRef struct{ Namespace, Name string }

// Served is what one cluster serves.
type Served struct {
	Version string // such as v1.37.2
	Kinds   []Kind
}

// Kind is one kind in the version that the cluster prefers.
type Kind struct {
	action.Resource
	ShortNames []string
}

// Forecast is what a change would do.
type Forecast struct {
	Verdict Verdict
	// Diff is masked. It is empty when nothing would change, and when Verdict
	// stood before the API server was asked.
	Diff []action.Change
	// Asked says that the API server was asked.
	Asked bool
}

// Verdict is what policy says to a request.
type Verdict struct {
	// Effect is allow, require_approval or deny; empty when it hangs on what has
	// not been read.
	Effect    string
	Rules     []string
	Reason    string
	Approvers []string
}

// ErrNothingAllowed says that policy allows the caller nothing in a cluster.
var ErrNothingAllowed = errors.New("policy allows you nothing there")

// ErrNoCluster says that a Plan hangs on what a cluster holds, where there is none to ask.
var ErrNoCluster = errors.New("what this call would do hangs on what the cluster holds, and no cluster is asked here")

// Offline is a Reader without a cluster: a tool that has to read cannot plan.
func Offline(r Resolver, now time.Time) Reader { return offline{r, now} }

type offline struct {
	Resolver
	now time.Time
}

func (offline) Read(context.Context, action.Action) (Response, error) {
	return Response{}, ErrNoCluster
}
func (offline) Forecast(context.Context, string, action.Action) (Forecast, error) {
	return Forecast{}, ErrNoCluster
}
func (offline) Verdict(string, action.Action) Verdict { return Verdict{} }
func (offline) Served(context.Context, string) (Served, error) {
	return Served{}, ErrNoCluster
}
func (o offline) Now() time.Time                        { return o.now }
func (offline) Kubectl(context.Context, string) Kubectl { return noKubectl{} }

type noKubectl struct{}

func (noKubectl) Describe(action.Resource, string, string) (string, error) {
	return "", ErrNoCluster
}
func (noKubectl) RolloutStatus(action.Action, map[string]any) (string, bool, error) {
	return "", false, ErrNoCluster
}
func (noKubectl) RolloutHistory(action.Action, int64) (string, error) { return "", ErrNoCluster }
func (noKubectl) Undo(action.Action, map[string]any, int64) (action.Action, error) {
	return action.Action{}, ErrNoCluster
}
func (noKubectl) Evictable(string, DrainOptions) ([]PodRef, error) {
	return nil, ErrNoCluster
}
func (noKubectl) Explain(action.Resource, []string, bool) (string, error) { return "", ErrNoCluster }
