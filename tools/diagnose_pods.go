package tools

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
)

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
