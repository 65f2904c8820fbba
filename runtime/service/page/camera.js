// The machine's camera, where the browser allows it: on localhost, or behind TLS.

import { node } from "./dom.js";

export function startCamera(take) {
  const $ = (id) => document.getElementById(id);
  let stream = null, count = 0;
  $("camera").hidden = !navigator.mediaDevices;
  const stop = () => {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    $("live").hidden = true;
    $("camera").focus();
  };
  $("camera").onclick = async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, facingMode: "environment" } });
    } catch (error) {
      $("said").textContent = `The camera cannot be used (${error.name}): allow it, or connect one.`;
      return;
    }
    $("video").srcObject = stream;
    await $("video").play();
    $("live").hidden = false;
    $("shoot").focus();
  };
  $("shoot").onclick = () => {
    const video = $("video");
    const canvas = node("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(new File([blob], `camera-${++count}.png`, { type: "image/png" })), "image/png");
  };
  $("camera-off").onclick = stop;
}
