package tools

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

// Bounds of a diagnosis. The log and some events have their place in it, so that
// however many pods there are, what explains them is not cut.
const (
	maxDiagnosis       = 8 << 10
	maxDiagnosedPods   = 500 // that are read
	maxShownPods       = 6
	maxDetailedPods    = 2 // whose containers are shown
	maxShownFindings   = 12
	maxFinding         = 240 // characters of each but the first
	maxShownEvents     = 10
	maxEventObjects    = 3   // of each kind, whose events are read
	maxDiagnosedEvents = 200 // that are read of each object
	reservedForEvents  = 1 << 10
	maxDiagnosedLines  = 20
	maxDiagnosedLog    = 2 << 10
)

const (
	// manyRestarts are a finding, however well the container runs now.
	manyRestarts = 5
	// recently is how long fewer of them are one.
	recently = 10 * time.Minute
)

var (
	replicaSets = action.Resource{Group: "apps", Version: "v1", Resource: "replicasets", Kind: "ReplicaSet", Namespaced: true}
	jobsV1      = action.Resource{Group: "batch", Version: "v1", Resource: "jobs", Kind: "Job", Namespaced: true}
	// diagnosed are the kinds that can be diagnosed.
	diagnosed = map[string]action.Resource{
		"pod": pods, "deployment": deployments, "statefulset": statefulSets, "daemonset": daemonSets, "job": jobsV1, "replicaset": replicaSets,
	}
)

type diagnoseWorkloadInput struct {
	Kind      string `json:"kind" jsonschema:"pod, deployment, statefulset, daemonset, job or replicaset"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func diagnoseWorkload() *Tool {
	kinds := []string{"pod", "deployment", "statefulset", "daemonset", "job", "replicaset"}
	var scopes []action.Scope
	for _, kind := range kinds {
		scopes = append(scopes, action.Scope{Verbs: []string{action.Get}, Resource: diagnosed[kind].GroupResource()})
	}
	return define(Tool{
		Name:        "diagnose_workload",
		Title:       "Diagnose a workload",
		Description: "Says what looks wrong with a workload: its state, pods, events and last log lines in one call.",
		Scopes:      scopes,
		Reads: append(slices.Clone(scopes),
			action.Scope{Verbs: []string{action.Get}, Resource: "nodes"},
			action.Scope{Verbs: []string{action.Get}, Resource: "pods", Subresource: "log"},
			action.Scope{Verbs: []string{action.List}, Resource: "pods"},
			action.Scope{Verbs: []string{action.List}, Resource: "events"},
			action.Scope{Verbs: []string{action.List}, Resource: "replicasets.apps"}),
	}, nil, func(ctx context.Context, r Reader, cluster string, in diagnoseWorkloadInput) (Call, error) {
		kind := workloadKind(in.Kind)
		resource, known := diagnosed[kind]
		switch {
		case kind == "cronjob": // its pods are its Jobs'
			return Call{}, BadArgument("a CronJob has no pods of its own: diagnose one of its Jobs, which list_resources shows for kind job")
		case !known:
			return Call{}, BadArgument("argument kind is not one of %v", kinds)
		}
		d := &diagnosis{ctx: ctx, r: r, cluster: cluster, namespace: in.Namespace, resource: resource, name: in.Name}
		text, err := d.run()
		return Call{Answer: text}, err
	}, nil)
}

// diagnosis is what is found out about one workload, from it down to its pods.
// What cannot be read is left out, and the rest is told.
type diagnosis struct {
	ctx                context.Context
	r                  Reader
	cluster, namespace string
	resource           action.Resource
	name               string

	workload workload
	sets     []appsv1.ReplicaSet // that have pods, or should
	pods     []podState
	// ended are pods that are over and that their controller has replaced, or will.
	ended []podState
	// listed says that the pods could be read; more that there are others.
	listed, more bool
	// selected is how many pods the selector takes, whoever owns them.
	selected int
	events   []event
	told     []finding // by events
}

// rank orders findings: what explains comes before what follows from it.
type rank int

const (
	givenUp rank = iota // nothing more will happen
	cause               // a container, a claim or the API server says why
	hint                // an event, a node or the scheduler says why
	symptom
	state // of the workload, and can be as it is meant
	past  // what nobody needs any more
)

// finding is something that looks wrong. What differs between pods in the same
// trouble stands apart from the text, so that it is told once.
type finding struct {
	rank rank
	text string
	// last is how the container's last run ended, ago when, and limit how much
	// memory it may have, where it took too much.
	last, ago, limit string
	restarts         int32
	message          string // what something in the cluster says about it
	pods             int    // that it is true of
}

func (f finding) String() string {
	text := f.text
	if f.last != "" {
		text += ", " + f.last + f.ago + f.limit
	}
	if f.restarts == 1 {
		text += ", 1 restart"
	} else if f.restarts > 1 {
		text += fmt.Sprintf(", %d restarts", f.restarts)
	}
	if f.message != "" {
		text += ": " + f.message
	}
	return text
}

// line is the finding among others.
func (f finding) line() string {
	if f.pods > 1 {
		return fmt.Sprintf("%d pods: %s", f.pods, f)
	}
	return f.String()
}

func (d *diagnosis) read(resource action.Resource, name string, into any) error {
	body, err := readOne(d.ctx, d.r, d.cluster, resource, d.namespace, name)
	if err != nil {
		return err
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, into); err != nil {
		return fmt.Errorf("reading the %s: %w", resource.Kind, err)
	}
	return nil
}

func (d *diagnosis) list(resource action.Resource, selector *metav1.LabelSelector, into any) error {
	response, err := d.r.Read(d.ctx, action.Action{
		Cluster: d.cluster, Verb: action.List, Resource: resource, Namespace: d.namespace,
		Options: action.Options{LabelSelector: metav1.FormatLabelSelector(selector), Limit: maxDiagnosedPods},
	})
	if err != nil {
		return err
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, into); err != nil {
		return fmt.Errorf("reading the list of %s: %w", resource.Resource, err)
	}
	return nil
}

func (d *diagnosis) run() (string, error) {
	if err := d.readWorkload(); err != nil {
		return "", err
	}
	d.readPods()
	d.readEvents()
	return d.text(), nil
}

// workload is what the kinds of workload have in common.
type workload struct {
	meta     metav1.ObjectMeta
	selector *metav1.LabelSelector
	state    string // its numbers and conditions, in words
	wants    int32  // pods
	ready    int32  // of them, as its controller says
	done     bool   // a Job that has done what it was to do
	findings []finding
	// refused says that its pods cannot be created; unavailable what it says of
	// itself where nothing explains it.
	refused     bool
	unavailable string
}

func (w *workload) finds(rank rank, format string, args ...any) {
	w.findings = append(w.findings, finding{rank: rank, text: fmt.Sprintf(format, args...)})
}

func (d *diagnosis) readWorkload() error {
	w := &d.workload
	switch d.resource {
	case pods:
		var pod corev1.Pod
		if err := d.read(d.resource, d.name, &pod); err != nil {
			return err
		}
		w.meta, w.wants = pod.ObjectMeta, 1
		d.listed = true
		d.pods = []podState{stateOf(pod, d.r.Now())}
	case deployments:
		var o appsv1.Deployment
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.deployment(o)
	case statefulSets:
		var o appsv1.StatefulSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.statefulSet(o)
	case daemonSets:
		var o appsv1.DaemonSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.daemonSet(o)
	case replicaSets:
		var o appsv1.ReplicaSet
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.replicaSet(o)
	case jobsV1:
		var o batchv1.Job
		if err := d.read(d.resource, d.name, &o); err != nil {
			return err
		}
		w.job(o)
	}
	return nil
}

func (w *workload) deployment(o appsv1.Deployment) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	s := o.Status
	w.ready = s.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, updated %d, ready %d, available %d", w.wants, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas)
	if o.Spec.Paused {
		w.finds(state, "the Deployment is paused: changes of its template are not rolled out until resume_rollout")
	}
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		switch {
		case c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded":
			w.finds(symptom, "the rollout is over its deadline (ProgressDeadlineExceeded): %s", oneLine(c.Message))
		case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
			w.refuses(c.Reason, c.Message)
		case c.Type == appsv1.DeploymentAvailable && c.Status == corev1.ConditionFalse:
			w.unavailable = fmt.Sprintf("not available (%s): %s", c.Reason, oneLine(c.Message))
		}
	}
	if w.generation(s.ObservedGeneration) {
		w.rollout(s.UpdatedReplicas, w.wants)
		if old := s.Replicas - s.UpdatedReplicas; old > 0 && s.UpdatedReplicas >= w.wants {
			w.finds(state, "rollout under way: %d pods of an earlier revision are still there", old)
		}
		w.available(s.ReadyReplicas, s.AvailableReplicas, o.Spec.MinReadySeconds)
	}
	w.none()
}

func (w *workload) statefulSet(o appsv1.StatefulSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	s := o.Status
	w.ready = s.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d, updated %d", w.wants, s.Replicas, s.ReadyReplicas, s.UpdatedReplicas)
	if w.generation(s.ObservedGeneration) {
		strategy := o.Spec.UpdateStrategy
		if strategy.Type != appsv1.OnDeleteStatefulSetStrategyType && s.UpdateRevision != s.CurrentRevision {
			target := w.wants
			if r := strategy.RollingUpdate; r != nil && r.Partition != nil {
				target -= *r.Partition // those below it stay as they are
			}
			w.rollout(s.UpdatedReplicas, target)
		}
		w.available(s.ReadyReplicas, s.AvailableReplicas, o.Spec.MinReadySeconds)
	}
	w.none()
}

func (w *workload) daemonSet(o appsv1.DaemonSet) {
	s := o.Status
	w.meta, w.selector, w.wants, w.ready = o.ObjectMeta, o.Spec.Selector, s.DesiredNumberScheduled, s.NumberReady
	w.state = fmt.Sprintf("wants %d (one a node), scheduled %d, ready %d, updated %d", w.wants, s.CurrentNumberScheduled, s.NumberReady, s.UpdatedNumberScheduled)
	if s.NumberMisscheduled > 0 {
		w.finds(state, "%d pods run on nodes where they should not", s.NumberMisscheduled)
	}
	if w.generation(s.ObservedGeneration) {
		if o.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			w.rollout(s.UpdatedNumberScheduled, w.wants)
		}
		w.available(s.NumberReady, s.NumberAvailable, o.Spec.MinReadySeconds)
	}
	if w.wants == 0 && s.ObservedGeneration > 0 {
		w.finds(state, "no node fits the DaemonSet: see its nodeSelector, affinity and tolerations")
	}
}

func (w *workload) replicaSet(o appsv1.ReplicaSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	w.ready = o.Status.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d", w.wants, o.Status.Replicas, o.Status.ReadyReplicas)
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			w.refuses(c.Reason, c.Message)
		}
	}
	w.available(o.Status.ReadyReplicas, o.Status.AvailableReplicas, o.Spec.MinReadySeconds)
	w.none()
}

func (w *workload) job(o batchv1.Job) {
	w.meta, w.selector = o.ObjectMeta, o.Spec.Selector
	s := o.Status
	w.state = fmt.Sprintf("active %d, succeeded %d, failed %d", s.Active, s.Succeeded, s.Failed)
	over := false
	for _, c := range s.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobFailed:
			w.finds(givenUp, "the Job has failed (%s): %s", c.Reason, oneLine(c.Message))
			over = true
		case batchv1.JobComplete:
			w.done, over = true, true
		case batchv1.JobSuspended:
			w.finds(state, "the Job is suspended")
		}
	}
	if s.Failed > 0 && !over {
		w.finds(symptom, "%d pods of the Job have failed; it tries again, %d times at most", s.Failed, backoffLimit(o))
	}
}

// backoffLimit is how often a Job tries again: six times where nothing is said.
func backoffLimit(o batchv1.Job) int32 {
	if o.Spec.BackoffLimit == nil {
		return 6
	}
	return *o.Spec.BackoffLimit
}

func (w *workload) condition(kind, status, reason string) {
	w.state += fmt.Sprintf("; %s=%s", kind, status)
	if reason != "" {
		w.state += " (" + reason + ")"
	}
}

// refuses says that the API server takes no pods of the workload.
func (w *workload) refuses(reason, message string) {
	w.refused = true
	w.finds(cause, "pods cannot be created (%s): %s", reason, oneLine(message))
}

// generation reports whether the status is about what the workload is now.
func (w *workload) generation(observed int64) bool {
	if observed < w.meta.Generation {
		w.finds(symptom, "its controller has not taken up the latest change yet (generation %d of %d)", observed, w.meta.Generation)
		return false
	}
	return true
}

func (w *workload) rollout(updated, target int32) {
	if updated < target {
		w.finds(state, "rollout under way: %d of %d updated", updated, target)
	}
}

// available looks at pods that are ready: only after a while do they count.
func (w *workload) available(ready, available, minReadySeconds int32) {
	if available < ready && minReadySeconds > 0 {
		w.finds(state, "%d of %d available: %d ready, but not yet for minReadySeconds %ds", available, w.wants, ready-available, minReadySeconds)
	} else if available < ready {
		w.finds(state, "%d of %d available, though %d are ready", available, w.wants, ready)
	}
}

func (w *workload) none() {
	if w.wants == 0 {
		w.finds(state, "no replicas are wanted: it is scaled to zero")
	}
}

// wanted is a number that stands for 1 where it is left out.
func wanted(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// oneLine is a message that something in the cluster has written, on one line.
func oneLine(message string) string {
	return clip(audit.MaskText(plainText([]byte(message))), maxMessage)
}

// readPods finds the workload's pods: what its selector takes and it owns, or a
// ReplicaSet of it.
func (d *diagnosis) readPods() {
	w := &d.workload
	if w.selector == nil {
		return
	}
	owners := map[string]bool{string(w.meta.UID): true}
	known := true
	if d.resource == deployments {
		var sets appsv1.ReplicaSetList
		known = d.list(replicaSets, w.selector, &sets) == nil
		for _, set := range sets.Items {
			if !metav1.IsControlledBy(&set, &w.meta) {
				continue
			}
			owners[string(set.UID)] = true
			if wanted(set.Spec.Replicas) > 0 || set.Status.Replicas > 0 { // not of an earlier revision
				d.sets = append(d.sets, set)
			}
		}
		slices.SortFunc(d.sets, func(a, b appsv1.ReplicaSet) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
		d.sets = d.sets[:min(len(d.sets), maxEventObjects)]
	}
	var list corev1.PodList
	if d.list(pods, w.selector, &list) != nil {
		return
	}
	d.listed, d.more, d.selected = true, list.Continue != "", len(list.Items)
	for _, pod := range list.Items {
		if owner := metav1.GetControllerOfNoCopy(&pod); known && (owner == nil || !owners[string(owner.UID)]) {
			continue
		}
		// As its controller counts: a pod that is over is no longer one of its
		// pods. Those of a Job are what it has done.
		over := pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
		if p := stateOf(pod, d.r.Now()); over && d.resource != jobsV1 {
			d.ended = append(d.ended, p)
		} else {
			d.pods = append(d.pods, p)
		}
	}
	// What is wrong first, and of that what has failed longest.
	slices.SortStableFunc(d.pods, func(a, b podState) int {
		return cmp.Or(cmp.Compare(boolInt(b.wrong != nil), boolInt(a.wrong != nil)), cmp.Compare(a.worst(), b.worst()),
			cmp.Compare(b.restarts, a.restarts), strings.Compare(a.name, b.name))
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// podState is one pod, and in words what is wrong with it.
type podState struct {
	name, node string
	uid        string // as events name it
	line       string
	containers []containerState
	// wrong is what is wrong with it, and nil when nothing is. A pod that is ready
	// can have had its trouble.
	wrong    *finding
	ready    bool
	leaving  bool // it is being deleted
	started  bool // a container of it has run
	runs     bool // one runs now
	restarts int32
	reason   string // why it is over, such as Evicted
	claims   []string
	// failing is the container whose log may tell why; previous that its last
	// run has ended.
	failing  string
	previous bool
}

// containerState is a line about a container. The image stands apart: a line of
// a ReplicaSet may have it already.
type containerState struct{ line, image string }

// well reports whether the pod does what it is there for.
func (p podState) well() bool { return !p.leaving && (p.wrong == nil || p.ready) }

func (p podState) worst() rank {
	if p.wrong == nil {
		return past
	}
	return p.wrong.rank
}

func stateOf(pod corev1.Pod, now time.Time) podState {
	s := podState{name: pod.Name, node: pod.Spec.NodeName, uid: string(pod.UID), claims: claimsOf(pod), leaving: pod.DeletionTimestamp != nil}
	if mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror != "" {
		s.uid = mirror // the kubelet knows a static pod by this
	}
	gates := ""
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady:
			s.ready = c.Status == corev1.ConditionTrue
			if c.Reason == "ReadinessGatesNotReady" {
				gates = oneLine(c.Message)
			}
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			s.finds(finding{rank: hint, text: fmt.Sprintf("not scheduled (%s)", c.Reason), message: oneLine(c.Message)})
		}
	}
	finished := pod.Status.Phase == corev1.PodSucceeded
	if s.reason = pod.Status.Reason; pod.Status.Phase == corev1.PodFailed && s.reason != "" { // such as Evicted
		s.finds(finding{rank: cause, text: fmt.Sprintf("failed (%s)", s.reason), message: oneLine(pod.Status.Message)})
	}
	for i, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		s.container(pod, c, i < len(pod.Status.InitContainerStatuses), finished, now)
	}
	if s.wrong == nil && !s.ready && !finished {
		f := finding{rank: symptom, text: "not ready, phase " + string(pod.Status.Phase), message: gates}
		if pod.Spec.NodeName == "" {
			f = finding{rank: symptom, text: "not scheduled yet"}
		} else if len(s.containers) == 0 {
			f.message = "its node has not said anything about its containers"
		}
		s.finds(f)
	}
	phase := string(pod.Status.Phase)
	if s.leaving {
		// How its containers end is as it should be; that it stays is not.
		phase, s.wrong, s.failing = phase+", being deleted", nil, ""
		if now.Sub(pod.DeletionTimestamp.Time) > time.Minute {
			s.finds(finding{rank: symptom, text: "being deleted and still there", message: goes(pod.ObjectMeta, now)})
		}
	}
	s.line = fmt.Sprintf("Pod %s: %s, ready %t, node %s, age %s", s.name, phase, s.ready, cmp.Or(s.node, "none"), duration.HumanDuration(now.Sub(pod.CreationTimestamp.Time)))
	return s
}

// goes says what an object that is being deleted waits for. The time of its
// deletion is the end of the grace period, and may be to come.
func goes(meta metav1.ObjectMeta, now time.Time) string {
	var parts []string
	if len(meta.Finalizers) > 0 {
		parts = append(parts, "waits for finalizers "+strings.Join(meta.Finalizers, ", "))
	}
	if over := now.Sub(meta.DeletionTimestamp.Time); over > time.Minute {
		parts = append(parts, "should have gone "+duration.HumanDuration(over)+" ago")
	}
	return strings.Join(parts, ", ")
}

// claimsOf are the names of the PersistentVolumeClaims of a pod.
func claimsOf(pod corev1.Pod) []string {
	var claims []string
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claims = append(claims, v.PersistentVolumeClaim.ClaimName)
		} else if v.Ephemeral != nil {
			claims = append(claims, pod.Name+"-"+v.Name)
		}
	}
	return claims
}

// finds keeps the finding that explains most, of several the first: what stands
// behind it in the pod may wait for it.
func (s *podState) finds(f finding) bool {
	if s.wrong != nil && s.wrong.rank <= f.rank {
		return false
	}
	s.wrong = &f
	return true
}

// container adds one container's state.
func (s *podState) container(pod corev1.Pod, c corev1.ContainerStatus, init, finished bool, now time.Time) {
	kind := "container "
	if init {
		kind = "init container "
	}
	spec := containerOf(pod, c.Name)
	f := finding{restarts: c.RestartCount}
	ended := c.LastTerminationState.Terminated
	if ended != nil {
		f.last, f.ago, f.limit = exitText("last ", ended), agoText(ended, now), limitText(ended, spec)
		f.message = oneLine(ended.Message)
	}
	last := f.last + f.ago
	s.runs = s.runs || !init && c.State.Running != nil
	s.started = s.started || ended != nil || !init && c.State.Waiting == nil
	var line string
	previous := ended != nil
	switch {
	case c.State.Waiting != nil:
		reason := cmp.Or(c.State.Waiting.Reason, "waiting")
		line = "waiting, " + reason
		if reason == "PodInitializing" || reason == "ContainerCreating" {
			break // what it waits for is said elsewhere, by another container or an event
		}
		f.rank, f.text = cause, kind+c.Name+" "+reason
		// That it is backed off is known; why it ended is not.
		if reason != "CrashLoopBackOff" || ended == nil {
			f.message = oneLine(c.State.Waiting.Message)
		}
	case c.State.Terminated != nil:
		t := c.State.Terminated
		line = exitText("", t) + agoText(t, now)
		last, previous = "", false
		if t.ExitCode != 0 {
			f = finding{rank: cause, text: kind + c.Name + " ended", last: exitText("", t), ago: agoText(t, now), limit: limitText(t, spec), restarts: c.RestartCount, message: oneLine(t.Message)}
		}
	case c.State.Running != nil:
		line = "running for " + duration.HumanDuration(now.Sub(c.State.Running.StartedAt.Time))
		switch {
		case !c.Ready && !init && !finished:
			f.rank, f.text, previous = symptom, kind+c.Name+" runs but is not ready", false
			if c.Started != nil && !*c.Started {
				f.text = kind + c.Name + " runs but has not passed its startup probe"
			}
		case ended != nil && (ended.Reason == "OOMKilled" || c.RestartCount >= manyRestarts || c.RestartCount > 0 && now.Sub(ended.FinishedAt.Time) < recently):
			f.rank, f.text, f.restarts = state, kind+c.Name+" has restarted "+howOften(c.RestartCount), 0
		}
	default:
		line = "no state yet"
	}
	if last != "" {
		line += ", " + last
	}
	s.containers = append(s.containers, containerState{
		fmt.Sprintf("%s%s: %s, restarts %d", kind, c.Name, line, c.RestartCount), cmp.Or(spec.Image, c.Image),
	})
	s.restarts = max(s.restarts, c.RestartCount)
	if f.text != "" && s.finds(f) {
		s.failing, s.previous = c.Name, previous
	}
}

// containerOf is what a pod's spec says of a container.
func containerOf(pod corev1.Pod, name string) corev1.Container {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == name {
			return c
		}
	}
	return corev1.Container{}
}

func howOften(n int32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func exitText(prefix string, t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("%sexit %d", prefix, t.ExitCode)
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		text += " " + t.Reason
	}
	return text
}

func agoText(t *corev1.ContainerStateTerminated, now time.Time) string {
	if t.FinishedAt.IsZero() {
		return ""
	}
	return " " + duration.HumanDuration(now.Sub(t.FinishedAt.Time)) + " ago"
}

// limitText is how much memory a container may have that took too much.
func limitText(t *corev1.ContainerStateTerminated, spec corev1.Container) string {
	if t.Reason != "OOMKilled" || spec.Name == "" {
		return ""
	}
	if limit, set := spec.Resources.Limits[corev1.ResourceMemory]; set {
		return ", memory limit " + limit.String()
	}
	return ", no memory limit"
}

// readEvents reads the events of the workload, of its ReplicaSets and of the
// first pods that are not well: of these objects, not of others that had their
// names before.
func (d *diagnosis) readEvents() {
	w := &d.workload
	about := []fields.Set{involved(d.resource.Kind, d.name, string(w.meta.UID))}
	if d.resource == pods {
		about = []fields.Set{involved("Pod", d.name, d.pods[0].uid)}
	}
	for _, set := range d.sets {
		about = append(about, involved("ReplicaSet", set.Name, string(set.UID)))
	}
	asked := 0
	for _, p := range d.pods {
		if d.resource != pods && p.wrong != nil && asked < maxEventObjects {
			asked++
			about = append(about, involved("Pod", p.name, p.uid))
		}
	}
	for _, selector := range about {
		found, err := d.eventsOf(selector)
		if err != nil {
			return // the others would be refused as well
		}
		d.events = append(d.events, found...)
	}
	d.readClaims()
	// Warnings first, and the newest of them.
	slices.SortStableFunc(d.events, func(a, b event) int {
		return cmp.Or(cmp.Compare(boolInt(b.kind == corev1.EventTypeWarning), boolInt(a.kind == corev1.EventTypeWarning)), b.last.Compare(a.last))
	})
	for _, reason := range []string{"FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedScheduling", "Unhealthy"} {
		i := slices.IndexFunc(d.events, func(e event) bool { return e.reason == reason && e.kind == corev1.EventTypeWarning && d.explains(e) })
		if i < 0 {
			continue
		}
		e := d.events[i]
		text := fmt.Sprintf("%s of %s: %s", reason, e.object, clip(e.message, maxMessage))
		if reason == "Unhealthy" {
			text = "a probe fails: " + clip(e.message, maxMessage)
		}
		d.told = append(d.told, finding{rank: hint, text: text})
	}
}

func involved(kind, name, uid string) fields.Set {
	set := fields.Set{"involvedObject.kind": kind, "involvedObject.name": name}
	if uid != "" {
		set["involvedObject.uid"] = uid
	}
	return set
}

func (d *diagnosis) eventsOf(selector fields.Set) ([]event, error) {
	found, _, err := readEvents(d.ctx, d.r, d.cluster, d.namespace, selector, maxDiagnosedEvents)
	return found, err
}

// readClaims looks for why the claims of a pod that waits for them are not
// bound: their own events say it, the pod's do not.
func (d *diagnosis) readClaims() {
	i := slices.IndexFunc(d.pods, func(p podState) bool {
		return p.node == "" && p.wrong != nil && strings.Contains(strings.ToLower(p.wrong.message), "persistentvolumeclaim")
	})
	if i < 0 {
		return
	}
	claims := d.pods[i].claims
	for _, claim := range claims[:min(len(claims), maxEventObjects)] {
		// By name alone: the claim itself is not read.
		found, err := d.eventsOf(involved("PersistentVolumeClaim", claim, ""))
		if err != nil || len(found) == 0 {
			d.told = append(d.told, finding{rank: hint, text: "its PersistentVolumeClaim " + claim + " may not be bound: see describe_resource of it"})
			continue
		}
		d.events = append(d.events, found...)
		// Not always a warning: that no volume fits is told as something normal.
		d.told = append(d.told, finding{rank: cause, text: fmt.Sprintf("PersistentVolumeClaim %s, %s: %s", claim, found[0].reason, clip(found[0].message, maxMessage))})
	}
}

// explains reports whether an event tells of a trouble that is still there, and
// that nothing else tells of.
func (d *diagnosis) explains(e event) bool {
	if e.reason == "FailedCreate" {
		there := len(d.pods)
		if !d.listed {
			there = int(d.workload.ready)
		}
		return !d.workload.refused && there < int(d.workload.wants)
	}
	i := slices.IndexFunc(d.pods, func(p podState) bool { return "Pod/"+p.name == e.object })
	if i < 0 || d.pods[i].well() || d.pods[i].leaving {
		return false
	}
	switch p := d.pods[i]; e.reason {
	case "FailedScheduling":
		return p.node == "" && p.worst() > hint // its condition says the same
	case "Unhealthy":
		return p.started
	default: // of what has to be there before a container starts
		return !p.runs && p.worst() > cause
	}
}

// readiness counts the pods that are ready, of those that there should be.
func (d *diagnosis) readiness() (ready, all int) {
	for _, p := range d.pods {
		if p.well() {
			ready++
		}
		if !p.leaving || d.resource == pods {
			all++
		}
	}
	return ready, max(all, int(d.workload.wants))
}

// findings is all that looks wrong, and what explains most first.
func (d *diagnosis) findings() []finding {
	w := d.workload
	ready, all := d.readiness()
	found := slices.Concat(d.podFindings(), w.findings, d.told, d.nodeFindings(), d.endedFindings(ready < all))
	refused := w.refused || slices.ContainsFunc(d.told, func(f finding) bool { return strings.HasPrefix(f.text, "FailedCreate") })
	if d.listed && len(d.pods) == 0 && w.wants > 0 && !refused {
		f := finding{rank: symptom, text: "there is no pod that its selector " + metav1.FormatLabelSelector(w.selector) + " takes"}
		if len(d.ended) > 0 {
			f.text = "there is no pod in place of those that are over"
		} else if d.selected > 0 {
			f.text = fmt.Sprintf("the %d pods that its selector takes belong to something else", d.selected)
		}
		found = append(found, f)
	}
	slices.SortStableFunc(found, func(a, b finding) int { return cmp.Compare(a.rank, b.rank) })
	if !d.listed && w.ready < w.wants {
		f := finding{text: fmt.Sprintf("%d of %d pods are ready; they could not be read themselves", w.ready, w.wants)}
		found = slices.Insert(found, 0, f)
	}
	switch {
	case len(found) > 0:
	case d.listed && ready < all && d.resource != pods && !w.done:
		found = append(found, finding{rank: symptom, text: "some are missing or being deleted, and nothing says why: its controller may be about to create them"})
	case w.unavailable != "":
		found = append(found, finding{rank: symptom, text: w.unavailable})
	}
	return found
}

func (d *diagnosis) text() string {
	var b strings.Builder
	name := fmt.Sprintf("%s %s/%s", d.resource.Kind, d.namespace, d.name)
	ready, all := d.readiness()
	found := d.findings()
	rest := found[min(1, len(found)):] // the first is the headline
	switch w := d.workload; {
	case w.meta.DeletionTimestamp != nil:
		fmt.Fprintf(&b, "%s is being deleted", name)
		if why := goes(w.meta, d.r.Now()); why != "" {
			b.WriteString(", " + why)
		}
		b.WriteString("\n")
		if rest = found; d.resource == pods {
			rest = nil // the same
		}
	case w.done: // whatever failed on the way
		fmt.Fprintf(&b, "%s is complete.\n", name)
		rest = found
	case len(found) == 0 && !d.listed && d.resource != pods:
		fmt.Fprintf(&b, "%s: nothing looks wrong with it, but its pods could not be read.\n", name)
	case len(found) == 0 && all == 0:
		fmt.Fprintf(&b, "%s: nothing looks wrong, and it has no pods.\n", name)
	case len(found) == 0:
		fmt.Fprintf(&b, "%s looks healthy: %d of %d pods are well.\n", name, ready, all)
	case found[0].rank == past:
		fmt.Fprintf(&b, "%s: %d of %d available; %s\n", name, ready, all, found[0])
	case found[0].rank == givenUp:
		fmt.Fprintf(&b, "%s: %s\n", name, found[0])
	case d.listed && ready < all && found[0].pods == all-ready:
		fmt.Fprintf(&b, "%s: %d of %d pods not ready: %s\n", name, all-ready, all, found[0])
	case d.listed && ready < all:
		fmt.Fprintf(&b, "%s: %d of %d pods not ready: %s\n", name, all-ready, all, found[0].line())
	default:
		fmt.Fprintf(&b, "%s: %s\n", name, found[0].line())
	}
	if len(rest) > 0 {
		b.WriteString("\nWhat else looks wrong:\n")
		for _, f := range rest[:min(len(rest), maxShownFindings)] {
			b.WriteString("- " + clip(f.line(), maxFinding) + "\n")
		}
		if n := len(rest) - maxShownFindings; n > 0 {
			fmt.Fprintf(&b, "- and %d more\n", n)
		}
	}
	d.chain(&b)
	log := ""
	if len(found) > 0 {
		log = d.log()
	}
	front := audit.MaskText(b.String())
	events := d.eventLines(len(found) > 0, front)
	room := maxDiagnosis - len(log)
	const note = 150 // bytes that a cut says of itself
	most := room - min(reservedForEvents, len(strings.Join(events, "")))
	if len(front) > most {
		front = cutAt(front, most-note, "describe_resource, list_events and get_pod_logs of one pod")
	}
	return front + log + eventSection(events, room-len(front))
}

// podFindings tells what is wrong with pods, the same of several once.
func (d *diagnosis) podFindings() []finding {
	at := map[string]int{}
	var found []finding
	for _, p := range d.pods {
		if p.wrong == nil {
			continue
		}
		f := *p.wrong
		// What is said of one pod and of the next often differs by its name alone.
		message := strings.ReplaceAll(f.message, p.name, "<pod>")
		if p.uid != "" {
			message = strings.ReplaceAll(message, p.uid, "<uid>")
		}
		key := strings.Join([]string{f.text, f.last, f.limit, message}, "\x00")
		i, seen := at[key]
		if !seen {
			i = len(found)
			at[key] = i
			found = append(found, f)
		} else {
			found[i].message = message
		}
		found[i].pods++
		found[i].restarts = max(found[i].restarts, f.restarts)
	}
	return found
}

// endedFindings tells of pods that are over: part of the trouble where there are
// too few others, and else only to be known.
func (d *diagnosis) endedFindings(missing bool) []finding {
	var reasons []string
	count, message := map[string]int{}, map[string]string{}
	for _, p := range d.ended {
		if p.wrong == nil {
			continue
		}
		reason := cmp.Or(p.reason, "Failed")
		if count[reason]++; count[reason] == 1 {
			reasons = append(reasons, reason)
			if message[reason] = p.wrong.message; p.reason == "" {
				message[reason] = p.wrong.String()
			}
		}
	}
	found := make([]finding, len(reasons))
	for i, reason := range reasons {
		f := finding{rank: past, text: fmt.Sprintf("%d earlier pods %s", count[reason], reason), message: message[reason]}
		if count[reason] == 1 {
			f.text = "1 earlier pod " + reason
		}
		if missing {
			f.rank = symptom
		}
		found[i] = f
	}
	return found
}

// nodeFindings looks at the nodes of the first pods that are not well, where
// the caller may: that a node is not ready explains much.
func (d *diagnosis) nodeFindings() []finding {
	var found []finding
	var asked []string
	for _, p := range d.pods {
		if p.wrong == nil || p.node == "" || slices.Contains(asked, p.node) || len(asked) == maxEventObjects {
			continue
		}
		asked = append(asked, p.node)
		get := action.Action{Cluster: d.cluster, Verb: action.Get, Resource: nodesV1, Name: p.node}
		if d.r.Verdict("diagnose_workload", get).Effect != "allow" {
			continue
		}
		var node corev1.Node
		response, err := d.r.Read(d.ctx, get)
		if err != nil {
			found = append(found, finding{rank: symptom, text: "node " + p.node + " of pod " + p.name + " could not be read: it may be gone"})
			continue
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &node) != nil {
			continue
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				found = append(found, finding{rank: hint, text: fmt.Sprintf("node %s is not ready (%s): %s", p.node, c.Reason, oneLine(c.Message))})
			}
		}
	}
	return found
}

// chain shows what belongs to what, from the workload to the containers of the
// first pods that are not well.
func (d *diagnosis) chain(b *strings.Builder) {
	b.WriteString("\n")
	indent := ""
	if d.resource != pods {
		fmt.Fprintf(b, "%s %s: %s\n", d.resource.Kind, d.name, d.workload.state)
		indent = "  "
	}
	var told []string // images
	for _, set := range d.sets {
		var images []string
		for _, c := range set.Spec.Template.Spec.Containers {
			images = append(images, c.Image)
		}
		told = append(told, images...)
		fmt.Fprintf(b, "  ReplicaSet %s (revision %s): wants %d, ready %d, images %s\n", set.Name, set.Annotations["deployment.kubernetes.io/revision"],
			wanted(set.Spec.Replicas), set.Status.ReadyReplicas, clip(strings.Join(images, ", "), maxCell))
	}
	for i, p := range d.pods[:min(len(d.pods), maxShownPods)] {
		b.WriteString(indent + p.line + "\n")
		if d.resource != pods && (p.wrong == nil || i >= maxDetailedPods) {
			continue
		}
		for i, c := range p.containers {
			if i == maxShownPods {
				fmt.Fprintf(b, "%s  and %d more containers\n", indent, len(p.containers)-i)
				break
			}
			b.WriteString(indent + "  " + c.line)
			if c.image != "" && !slices.Contains(told, c.image) {
				b.WriteString(", image " + clip(c.image, 100))
			}
			b.WriteString("\n")
		}
	}
	if n := len(d.pods) - maxShownPods; n > 0 {
		fmt.Fprintf(b, "%sand %d more pods: see list_resources\n", indent, n)
	}
	if d.more {
		fmt.Fprintf(b, "%sonly the first %d pods were looked at\n", indent, maxDiagnosedPods)
	}
}

// eventLines are a line for each event. What stands above is not said again.
func (d *diagnosis) eventLines(all bool, above string) []string {
	var lines []string
	for _, e := range d.events {
		if !all && e.kind != corev1.EventTypeWarning {
			continue
		}
		message := clip(e.message, maxMessage)
		if len(message) > len("as above") && strings.Contains(above, message) {
			message = "as above"
		}
		lines = append(lines, fmt.Sprintf("%s  %s %s %s: %s\n", e.seen(d.r.Now()), e.kind, e.reason, e.object, message))
	}
	return lines
}

// eventSection is as many of the events as there is room for.
func eventSection(lines []string, room int) string {
	const head, more = "\nEvents:\n", "and %d more: see list_events\n"
	room -= len(head) + len(more) + 10 // digits of the number
	shown := ""
	for i, line := range lines {
		if i == maxShownEvents || len(shown)+len(line) > room {
			shown += fmt.Sprintf(more, len(lines)-i)
			break
		}
		shown += line
	}
	if shown == "" {
		return ""
	}
	return head + shown
}

// log shows the end of the log of the first container that fails: of the run
// that has ended, when it waits for the next.
func (d *diagnosis) log() string {
	i := slices.IndexFunc(d.pods, func(p podState) bool { return p.failing != "" })
	if i < 0 {
		return ""
	}
	p := d.pods[i]
	a := logAction(d.cluster, d.namespace, p.name)
	a.Options = action.Options{Container: p.failing, Previous: p.previous, TailLines: maxDiagnosedLines, TailBytes: maxDiagnosedLog + margin}
	response, err := d.r.Read(d.ctx, a)
	if err != nil || len(response.Body) == 0 {
		return "" // a container that never ran has none
	}
	run := ""
	if p.previous {
		run = ", its previous run"
	}
	head := fmt.Sprintf("\nLast lines of the log of container %s of pod %s%s:\n", p.failing, p.name, run)
	if looksBinary(response.Body) {
		return head + binaryLog(response) + "\n"
	}
	lines, _ := logLines(response)
	return head + strings.TrimSuffix(lastBytes(lines, maxDiagnosedLog), "\n") + "\n"
}
