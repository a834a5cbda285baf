// The page: takes a clip from a file, a drop or the microphone, sends it with the question, shows the reply.
"use strict";

const at = (id) => document.getElementById(id);
const limits = document.querySelector("main").dataset;
let clip = null; // what is sent: a File or a recorded Blob
let recorder = null;

function complain(sentence) {
  at("error").textContent = sentence;
  at("error").hidden = !sentence;
  if (sentence) at("result").scrollIntoView({ block: "nearest" });
}

function takeClip(blob, name) {
  complain("");
  if (blob.size > Number(limits.maxBytes)) {
    complain(`${name} is larger than ${limits.maxMib} MiB; cut or compress it`);
    return;
  }
  clip = blob;
  at("clip").textContent = `${name} (${(blob.size / 1024).toFixed(0)} KiB)`;
  if (at("player").src) URL.revokeObjectURL(at("player").src);
  at("player").src = URL.createObjectURL(blob);
  at("player").hidden = false;
}

// 16-bit mono WAV of decoded sound: browsers record in containers that the page's server does not read
function asWave(sound) {
  const samples = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++)
    sound.getChannelData(channel).forEach((value, i) => (samples[i] += value / sound.numberOfChannels));
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((sign, i) => view.setUint8(place + i, sign.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, sound.sampleRate, true); view.setUint32(28, 2 * sound.sampleRate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, value)), true));
  return new Blob([view], { type: "audio/wav" });
}

async function startRecording() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    clearTimeout(recorder.end);
    stream.getTracks().forEach((track) => track.stop());
    showRecording(false);
    try {
      const context = new AudioContext({ sampleRate: 16000 });
      takeClip(asWave(await context.decodeAudioData(await new Blob(parts).arrayBuffer())), "recording");
      context.close();
    } catch {
      complain("the recording is empty; record for a second at least");
    }
  };
  recorder.start();
  recorder.end = setTimeout(() => recorder.stop(), 1000 * Number(limits.maxSeconds) - 200);
  showRecording(true);
}

function showRecording(on) {
  at("record").textContent = on ? "Stop" : "Record";
  at("record").setAttribute("aria-pressed", on);
  at("clip").textContent = on ? "recording …" : at("clip").textContent;
}

async function toggleRecording() {
  complain("");
  if (recorder && recorder.state === "recording") return recorder.stop();
  try {
    await startRecording();
  } catch {
    complain("the microphone cannot be used: allow it in the browser, or choose a file");
  }
}

function picked() {
  const offer = at("offer");
  return offer ? offer.selectedOptions[0].dataset : { task: "" };
}

function showPicked() {
  const count = Number(picked().labels || 0);
  at("scored").textContent = count ? `The ${count} labels of ${picked().task.replaceAll("_", " ")} are compared, too.` : "";
}

function showReply(reply, task) {
  at("answer").textContent = reply.answer || "(an empty answer)";
  at("answer").classList.toggle("faint", !reply.answer);
  at("scores").hidden = !reply.labels.length;
  at("task").textContent = task.replaceAll("_", " ");
  at("bars").replaceChildren(...reply.labels.map(barOf));
  at("mel").src = reply.mel;
  at("middle").textContent = `${(reply.seconds / 2).toFixed(1)} s`;
  at("end").textContent = `${reply.seconds.toFixed(1)} s`;
  at("figure").hidden = false;
  at("result").scrollIntoView({ block: "nearest" });
  at("state").textContent = `answered in ${reply.took.toFixed(1)} s`;
}

function barOf({ label, probability }) {
  const row = document.createElement("tr");
  const name = Object.assign(document.createElement("th"), { scope: "row", textContent: label });
  const bar = Object.assign(document.createElement("div"), { className: "bar" });
  bar.style.width = `${100 * probability}%`;
  const cell = document.createElement("td");
  cell.append(bar);
  const number = Object.assign(document.createElement("td"), { className: "number" });
  number.textContent = `${(100 * probability).toFixed(1)} %`;
  row.append(name, cell, number);
  return row;
}

async function ask(event) {
  event.preventDefault();
  if (!clip) return complain("choose, drop or record a clip first");
  complain("");
  at("ask").disabled = true;
  at("state").textContent = "listening …";
  const task = picked().labels > 0 ? picked().task : "";
  const query = new URLSearchParams({ question: at("question").value, task });
  try {
    const answer = await fetch(`ask?${query}`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: clip,
    });
    const reply = await answer.json();
    if (reply.error) throw new Error(reply.error);
    showReply(reply, task);
  } catch (problem) {
    at("state").textContent = "";
    complain(problem instanceof TypeError ? "the page's server does not answer; is it still running?" : problem.message);
  }
  at("ask").disabled = false;
}

at("file").addEventListener("change", () => at("file").files[0] && takeClip(at("file").files[0], at("file").files[0].name));
at("record").addEventListener("click", toggleRecording);
at("form").addEventListener("submit", ask);
if (at("offer"))
  at("offer").addEventListener("change", () => {
    if (at("offer").value) at("question").value = at("offer").value;
    showPicked();
  });
for (const kind of ["dragover", "dragleave", "drop"])
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) takeClip(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
if (!navigator.mediaDevices) {
  at("record").disabled = true;
  at("record").title = "browsers lend the microphone to local and https pages only";
}
showPicked();
