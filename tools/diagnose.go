package tools

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
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

// Bounds of a diagnosis. Its parts fit into the whole; what goes beyond is cut
// from the end, where what matters least stands.
const (
	maxDiagnosis       = 8 << 10
	maxDiagnosedPods   = 500 // that are read
	maxShownPods       = 6
	maxShownFindings   = 12
	maxShownEvents     = 10
	maxEventObjects    = 3   // pods whose events are read
	maxDiagnosedEvents = 200 // that are read of each object
	maxDiagnosedLines  = 20
	maxDiagnosedLog    = 2 << 10
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
	Kind      string `json:"kind"`
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
	}, func(s *jsonschema.Schema) {
		oneOf(s, "kind", kinds...)
	}, func(ctx context.Context, r Reader, cluster string, in diagnoseWorkloadInput) (Call, error) {
		d := &diagnosis{ctx: ctx, r: r, cluster: cluster, namespace: in.Namespace, resource: diagnosed[in.Kind], name: in.Name}
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
	sets     []appsv1.ReplicaSet
	pods     []podState
	// listed says that the pods could be read; more that there are others.
	listed, more bool
	// selected is how many pods the selector takes, whoever owns them.
	selected int
	events   []event
	findings []string // of events
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
	findings []string
}

func (w *workload) finds(format string, args ...any) {
	w.findings = append(w.findings, fmt.Sprintf(format, args...))
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
		d.pods, d.listed = []podState{stateOf(pod, d.r.Now())}, true
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
		w.finds("the Deployment is paused: changes of its template are not rolled out until resume_rollout")
	}
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		switch {
		case c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded":
			w.finds("the rollout is over its deadline (ProgressDeadlineExceeded): %s", oneLine(c.Message))
		case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
			w.finds("pods cannot be created (%s): %s", c.Reason, oneLine(c.Message))
		}
	}
	w.generation(s.ObservedGeneration)
	w.none()
}

func (w *workload) statefulSet(o appsv1.StatefulSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	s := o.Status
	w.ready = s.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d, updated %d", w.wants, s.Replicas, s.ReadyReplicas, s.UpdatedReplicas)
	w.generation(s.ObservedGeneration)
	w.none()
}

func (w *workload) daemonSet(o appsv1.DaemonSet) {
	s := o.Status
	w.meta, w.selector, w.wants, w.ready = o.ObjectMeta, o.Spec.Selector, s.DesiredNumberScheduled, s.NumberReady
	w.state = fmt.Sprintf("wants %d (one a node), scheduled %d, ready %d, updated %d", w.wants, s.CurrentNumberScheduled, s.NumberReady, s.UpdatedNumberScheduled)
	if s.NumberMisscheduled > 0 {
		w.finds("%d pods run on nodes where they should not", s.NumberMisscheduled)
	}
	w.generation(s.ObservedGeneration)
	if w.wants == 0 && s.ObservedGeneration > 0 {
		w.finds("no node fits the DaemonSet: see its nodeSelector, affinity and tolerations")
	}
}

func (w *workload) replicaSet(o appsv1.ReplicaSet) {
	w.meta, w.selector, w.wants = o.ObjectMeta, o.Spec.Selector, wanted(o.Spec.Replicas)
	w.ready = o.Status.ReadyReplicas
	w.state = fmt.Sprintf("wants %d, has %d, ready %d", w.wants, o.Status.Replicas, o.Status.ReadyReplicas)
	for _, c := range o.Status.Conditions {
		w.condition(string(c.Type), string(c.Status), c.Reason)
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			w.finds("pods cannot be created (%s): %s", c.Reason, oneLine(c.Message))
		}
	}
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
			w.finds("the Job has failed (%s): %s", c.Reason, oneLine(c.Message))
			over = true
		case batchv1.JobComplete:
			w.done, over = true, true
		case batchv1.JobSuspended:
			w.finds("the Job is suspended")
		}
	}
	if s.Failed > 0 && !over {
		w.finds("%d pods of the Job have failed; it tries again, %d times at most", s.Failed, wanted(o.Spec.BackoffLimit))
	}
}

func (w *workload) condition(kind, status, reason string) {
	w.state += fmt.Sprintf("; %s=%s", kind, status)
	if reason != "" {
		w.state += " (" + reason + ")"
	}
}

func (w *workload) generation(observed int64) {
	if observed < w.meta.Generation {
		w.finds("its controller has not taken up the latest change yet (generation %d of %d)", observed, w.meta.Generation)
	}
}

func (w *workload) none() {
	if w.wants == 0 {
		w.finds("no replicas are wanted: it is scaled to zero")
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
			if metav1.IsControlledBy(&set, &w.meta) {
				owners[string(set.UID)] = true
				d.sets = append(d.sets, set)
			}
		}
		slices.SortFunc(d.sets, func(a, b appsv1.ReplicaSet) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	}
	var list corev1.PodList
	if d.list(pods, w.selector, &list) != nil {
		return
	}
	d.listed, d.more, d.selected = true, list.Continue != "", len(list.Items)
	for _, pod := range list.Items {
		if owner := metav1.GetControllerOfNoCopy(&pod); !known || owner != nil && owners[string(owner.UID)] {
			d.pods = append(d.pods, stateOf(pod, d.r.Now()))
		}
	}
	// What is wrong first, and of that what has failed longest.
	slices.SortStableFunc(d.pods, func(a, b podState) int {
		return cmp.Or(cmp.Compare(boolInt(b.wrong != ""), boolInt(a.wrong != "")), cmp.Compare(b.restarts, a.restarts), strings.Compare(a.name, b.name))
	})
	if len(d.pods) == 0 && w.wants > 0 {
		text := "there is no pod that its selector " + metav1.FormatLabelSelector(w.selector) + " takes"
		if d.selected > 0 {
			text = fmt.Sprintf("the %d pods that its selector takes belong to something else", d.selected)
		}
		w.findings = append(w.findings, text)
	}
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
	uid        string
	line       string
	containers []string
	// wrong is what is wrong without the pod's name, so that pods of the same
	// trouble are told once; empty when nothing is.
	wrong    string
	restarts int32
	ready    bool
	// failing is the container whose log may tell why; previous that its last
	// run has ended.
	failing  string
	previous bool
}

func stateOf(pod corev1.Pod, now time.Time) podState {
	s := podState{name: pod.Name, node: pod.Spec.NodeName, uid: string(pod.UID)}
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady:
			s.ready = c.Status == corev1.ConditionTrue
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			s.wrong = fmt.Sprintf("not scheduled (%s): %s", c.Reason, oneLine(c.Message))
		}
	}
	finished := pod.Status.Phase == corev1.PodSucceeded
	stuck := pod.DeletionTimestamp != nil && now.Sub(pod.DeletionTimestamp.Time) > time.Minute
	switch {
	case pod.Status.Phase == corev1.PodFailed && pod.Status.Reason != "": // such as Evicted
		s.wrong = fmt.Sprintf("failed (%s): %s", pod.Status.Reason, oneLine(pod.Status.Message))
	case stuck:
		s.wrong = "is to be deleted since " + duration.HumanDuration(now.Sub(pod.DeletionTimestamp.Time)) + " and is still there"
		if len(pod.Finalizers) > 0 {
			s.wrong += ": it waits for the finalizers " + strings.Join(pod.Finalizers, ", ")
		}
	}
	all := append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...)
	for i, c := range all {
		init := i < len(pod.Status.InitContainerStatuses)
		s.container(c, init, finished, now)
	}
	if s.wrong == "" && !s.ready && !finished {
		s.wrong = "not ready, phase " + string(pod.Status.Phase)
		if pod.Spec.NodeName == "" {
			s.wrong = "not scheduled yet"
		} else if len(all) == 0 {
			s.wrong += ": its node has not said anything about its containers"
		}
	}
	phase := string(pod.Status.Phase)
	if pod.DeletionTimestamp != nil {
		if !stuck { // it is on its way out, as it should be
			s.wrong, s.failing = "", ""
		}
		phase += ", being deleted"
	}
	s.line = fmt.Sprintf("Pod %s: %s, ready %t, node %s, age %s", s.name, phase, s.ready, cmp.Or(s.node, "none"), duration.HumanDuration(now.Sub(pod.CreationTimestamp.Time)))
	return s
}

// container adds one container's state. The first that is wrong is what is
// wrong with the pod: those behind it wait for it.
func (s *podState) container(c corev1.ContainerStatus, init, finished bool, now time.Time) {
	kind := "container "
	if init {
		kind = "init container "
	}
	var wrong, line string
	last := ""
	if t := c.LastTerminationState.Terminated; t != nil {
		last = exitText("last ", t)
	}
	previous := false
	switch {
	case c.State.Waiting != nil:
		reason, message := cmp.Or(c.State.Waiting.Reason, "waiting"), oneLine(c.State.Waiting.Message)
		if line = "waiting, " + reason; last != "" {
			line += ", " + last
		}
		if reason == "PodInitializing" || reason == "ContainerCreating" {
			break // what it waits for is said elsewhere, by another container or an event
		}
		wrong = kind + c.Name + " " + reason
		previous = last != ""
		if last != "" {
			wrong += ", " + last
		} else if message != "" {
			wrong += ": " + message
		}
	case c.State.Terminated != nil:
		line = exitText("", c.State.Terminated)
		if c.State.Terminated.ExitCode != 0 {
			wrong = kind + c.Name + " ended, " + line
			if message := oneLine(c.State.Terminated.Message); message != "" {
				wrong += ": " + message
			}
		}
	case c.State.Running != nil:
		line = "running for " + duration.HumanDuration(now.Sub(c.State.Running.StartedAt.Time))
		if !c.Ready && !init && !finished {
			wrong = kind + c.Name + " runs but is not ready"
			if c.Started != nil && !*c.Started {
				wrong = kind + c.Name + " runs but has not passed its startup probe"
			}
		}
		if last != "" {
			line += ", " + last
			if wrong != "" {
				wrong += ", " + last
			} else if c.RestartCount > 0 && now.Sub(c.LastTerminationState.Terminated.FinishedAt.Time) < recently {
				wrong = kind + c.Name + " was restarted a short time ago, " + last
				previous = true
			}
		}
	default:
		line = "no state yet"
	}
	s.containers = append(s.containers, fmt.Sprintf("%s%s: %s, restarts %d, image %s", kind, c.Name, line, c.RestartCount, clip(c.Image, 100)))
	s.restarts = max(s.restarts, c.RestartCount)
	if wrong != "" && s.failing == "" {
		if s.wrong == "" {
			s.wrong = wrong
		}
		s.failing, s.previous = c.Name, previous
	}
}

// recently is how long a restart counts as something that is wrong.
const recently = 10 * time.Minute

func exitText(prefix string, t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("%sexit %d", prefix, t.ExitCode)
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		text += " " + t.Reason
	}
	return text
}

// readEvents reads the events of the workload, of its newest ReplicaSet and of
// the first pods that are not well.
func (d *diagnosis) readEvents() {
	about := []fields.Set{{"involvedObject.kind": d.resource.Kind, "involvedObject.name": d.name}}
	if d.resource == deployments && len(d.sets) > 0 {
		about = append(about, fields.Set{"involvedObject.kind": "ReplicaSet", "involvedObject.name": d.sets[0].Name})
	}
	asked := 0
	for _, p := range d.pods {
		if d.resource != pods && p.wrong != "" && asked < maxEventObjects {
			asked++
			about = append(about, fields.Set{"involvedObject.kind": "Pod", "involvedObject.name": p.name})
		}
	}
	for _, selector := range about {
		found, _, err := readEvents(d.ctx, d.r, d.cluster, d.namespace, selector, maxDiagnosedEvents)
		if err != nil {
			return // the others would be refused as well
		}
		d.events = append(d.events, found...)
	}
	// Warnings first, and the newest of them.
	slices.SortStableFunc(d.events, func(a, b event) int {
		return cmp.Or(cmp.Compare(boolInt(b.kind == corev1.EventTypeWarning), boolInt(a.kind == corev1.EventTypeWarning)), b.last.Compare(a.last))
	})
	// Why probes fail stands in events alone.
	for _, e := range d.events {
		if e.reason == "Unhealthy" && d.unwell() {
			d.findings = append(d.findings, "a probe fails: "+clip(e.message, maxMessage))
			break
		}
	}
	for _, reason := range []string{"FailedCreate", "FailedMount", "FailedScheduling"} {
		for _, e := range d.events {
			if e.reason == reason && e.kind == corev1.EventTypeWarning && d.unwell() && !slices.ContainsFunc(d.findings, func(f string) bool { return strings.Contains(f, clip(e.message, 60)) }) {
				d.findings = append(d.findings, fmt.Sprintf("%s of %s: %s", reason, e.object, clip(e.message, maxMessage)))
				break
			}
		}
	}
}

// unwell reports whether pods are missing or not ready.
func (d *diagnosis) unwell() bool {
	ready, all := d.readiness()
	return ready < all
}

// readiness counts the pods that are ready, of those that there should be.
func (d *diagnosis) readiness() (ready, all int) {
	for _, p := range d.pods {
		if p.wrong == "" {
			ready++
		}
	}
	return ready, max(len(d.pods), int(d.workload.wants))
}

func (d *diagnosis) text() string {
	var b strings.Builder
	name := fmt.Sprintf("%s %s/%s", d.resource.Kind, d.namespace, d.name)
	ready, all := d.readiness()
	found := slices.Concat(d.podFindings(), d.workload.findings, d.findings, d.nodeFindings())
	if w := d.workload; !d.listed && w.ready < w.wants {
		found = slices.Insert(found, 0, fmt.Sprintf("%d of %d pods are ready; they could not be read themselves", w.ready, w.wants))
	}
	switch {
	case d.workload.done: // whatever failed on the way
		fmt.Fprintf(&b, "%s is complete.\n", name)
	case len(found) == 0 && !d.listed && d.resource != pods:
		fmt.Fprintf(&b, "%s: nothing looks wrong with it, but its pods could not be read.\n", name)
	case len(found) == 0 && all == 0:
		fmt.Fprintf(&b, "%s: nothing looks wrong, and it has no pods.\n", name)
	case len(found) == 0:
		fmt.Fprintf(&b, "%s looks healthy: %d of %d pods are well.\n", name, ready, all)
	case d.listed && ready < all:
		fmt.Fprintf(&b, "%s: %d of %d pods not ready: %s\n", name, all-ready, all, found[0])
	default:
		fmt.Fprintf(&b, "%s: %s\n", name, found[0])
	}
	if len(found) > 1 {
		b.WriteString("\nWhat looks wrong:\n")
		for _, f := range found[:min(len(found), maxShownFindings)] {
			b.WriteString("- " + f + "\n")
		}
		if n := len(found) - maxShownFindings; n > 0 {
			fmt.Fprintf(&b, "- and %d more\n", n)
		}
	}
	d.chain(&b)
	d.eventLines(&b, len(found) > 0)
	if len(found) > 0 {
		d.log(&b)
	}
	return cutAt(audit.MaskText(b.String()), maxDiagnosis, "describe_resource, list_events and get_pod_logs of one pod")
}

// podFindings tells what is wrong with pods, the same of several once.
func (d *diagnosis) podFindings() []string {
	count, restarts := map[string]int{}, map[string]int32{}
	var found []string
	for _, p := range d.pods {
		if p.wrong == "" {
			continue
		}
		if count[p.wrong]++; count[p.wrong] == 1 {
			found = append(found, p.wrong)
		}
		restarts[p.wrong] = max(restarts[p.wrong], p.restarts)
	}
	for i, wrong := range found {
		if n := restarts[wrong]; n > 0 {
			found[i] += fmt.Sprintf(", %d restarts", n)
		}
		if n := count[wrong]; n > 1 {
			found[i] += fmt.Sprintf(" (%d pods)", n)
		}
	}
	return found
}

// nodeFindings looks at the nodes of the first pods that are not well, where
// the caller may: that a node is not ready explains much.
func (d *diagnosis) nodeFindings() []string {
	var found []string
	var asked []string
	for _, p := range d.pods {
		if p.wrong == "" || p.node == "" || slices.Contains(asked, p.node) || len(asked) == maxEventObjects {
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
			found = append(found, "node "+p.node+" of pod "+p.name+" could not be read: it may be gone")
			continue
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &node) != nil {
			continue
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				found = append(found, fmt.Sprintf("node %s is not ready (%s): %s", p.node, c.Reason, oneLine(c.Message)))
			}
		}
	}
	return found
}

// chain shows what belongs to what, from the workload to its containers.
func (d *diagnosis) chain(b *strings.Builder) {
	b.WriteString("\n")
	indent := ""
	if d.resource != pods {
		fmt.Fprintf(b, "%s %s: %s\n", d.resource.Kind, d.name, d.workload.state)
		indent = "  "
	}
	shown := 0
	for _, set := range d.sets {
		if wanted(set.Spec.Replicas) == 0 && set.Status.Replicas == 0 {
			continue // of an earlier revision
		}
		if shown++; shown > 3 {
			break
		}
		var images []string
		for _, c := range set.Spec.Template.Spec.Containers {
			images = append(images, c.Image)
		}
		fmt.Fprintf(b, "  ReplicaSet %s (revision %s): wants %d, ready %d, images %s\n", set.Name, set.Annotations["deployment.kubernetes.io/revision"],
			wanted(set.Spec.Replicas), set.Status.ReadyReplicas, clip(strings.Join(images, ", "), maxCell))
	}
	for _, p := range d.pods[:min(len(d.pods), maxShownPods)] {
		b.WriteString(indent + p.line + "\n")
		for i, c := range p.containers {
			if i == maxShownPods {
				fmt.Fprintf(b, "%s  and %d more containers\n", indent, len(p.containers)-i)
				break
			}
			b.WriteString(indent + "  " + c + "\n")
		}
	}
	if n := len(d.pods) - maxShownPods; n > 0 {
		fmt.Fprintf(b, "%sand %d more pods: see list_resources\n", indent, n)
	}
	if d.more {
		fmt.Fprintf(b, "%sonly the first %d pods were looked at\n", indent, maxDiagnosedPods)
	}
}

func (d *diagnosis) eventLines(b *strings.Builder, all bool) {
	shown := 0
	for _, e := range d.events {
		if !all && e.kind != corev1.EventTypeWarning {
			continue
		}
		if shown++; shown == 1 {
			b.WriteString("\nEvents:\n")
		}
		if shown > maxShownEvents {
			fmt.Fprintf(b, "and more: see list_events\n")
			break
		}
		fmt.Fprintf(b, "%s  %s %s %s: %s\n", e.seen(d.r.Now()), e.kind, e.reason, e.object, clip(e.message, maxMessage))
	}
}

// log shows the end of the log of the first container that fails: of the run
// that has ended, when it waits for the next.
func (d *diagnosis) log(b *strings.Builder) {
	i := slices.IndexFunc(d.pods, func(p podState) bool { return p.failing != "" })
	if i < 0 {
		return
	}
	p := d.pods[i]
	a := logAction(d.cluster, d.namespace, p.name)
	a.Options = action.Options{Container: p.failing, Previous: p.previous, TailLines: maxDiagnosedLines, TailBytes: maxDiagnosedLog + margin}
	response, err := d.r.Read(d.ctx, a)
	if err != nil || len(response.Body) == 0 {
		return // a container that never ran has none
	}
	run := ""
	if p.previous {
		run = ", its previous run"
	}
	fmt.Fprintf(b, "\nLast lines of the log of container %s of pod %s%s:\n", p.failing, p.name, run)
	if looksBinary(response.Body) {
		b.WriteString(binaryLog(response) + "\n")
		return
	}
	lines, _ := logLines(response)
	b.WriteString(strings.TrimSuffix(lastBytes(lines, maxDiagnosedLog), "\n") + "\n")
}
